//! The state of a job as text: the same on a terminal and on a page.

use super::{Activity, Phase, View, WorkerView};
use crate::counted;

impl View {
    /// One line: the phase and what it counts.
    pub fn line(&self) -> String {
        if let Some(ending) = &self.ending {
            let packages = counted(self.packages, "package");
            return format!("over: {ending}; {} of {packages} committed", self.committed);
        }
        let package = match self.package {
            Some(package) => format!("package {package} of {}", self.packages),
            None => format!("{} of {} committed", self.committed, counted(self.packages, "package")),
        };
        let counts = match self.phase {
            Phase::Calibrate | Phase::Apply => {
                format!(", {} of {}", self.held, counted(self.shards, "shard"))
            }
            Phase::Reduce => ", workers sum their Grams".to_owned(),
            Phase::Solve => format!(", {} of {}", self.solved, counted(self.parts, "part")),
            Phase::Pilot | Phase::Commit | Phase::Export | Phase::Over => String::new(),
        };
        format!("{}: {package}{counts}", self.phase)
    }
}

impl WorkerView {
    /// What the worker does.
    pub fn now(&self) -> String {
        match self.activity {
            Activity::Leaves => "leaves".to_owned(),
            Activity::Prepares => "prepares: reads the model".to_owned(),
            Activity::Encodes => "prepares: encodes the prompts".to_owned(),
            Activity::Applies => "loads the weights of finished packages".to_owned(),
            Activity::Pilots => "runs the first shard, to find exponents".to_owned(),
            Activity::Calibrates => format!("runs {}", counted(self.leased, "shard")),
            Activity::Restores => "restores saved sums".to_owned(),
            Activity::Reduces => "sums Grams".to_owned(),
            Activity::Solves => format!("solves {}", counted(self.solving, "part")),
            Activity::Exports => "writes the pipeline".to_owned(),
            Activity::Waits => "waits".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::view::Ending;
    use crate::{Epoch, PackageId, WorkerId};

    use super::*;

    fn view(phase: Phase) -> View {
        View {
            phase,
            packages: 4,
            surveys: 0,
            committed: 1,
            package: Some(PackageId(1)),
            shards: 25,
            held: 12,
            parts: 8,
            solved: 3,
            epoch: Some(Epoch(5)),
            workers: Vec::new(),
            ending: None,
        }
    }

    #[test]
    fn each_phase_counts_what_it_does() {
        let line = |phase| view(phase).line();
        assert_eq!(line(Phase::Calibrate), "calibrate: package 2 of 4, 12 of 25 shards");
        assert_eq!(line(Phase::Reduce), "reduce: package 2 of 4, workers sum their Grams");
        assert_eq!(line(Phase::Solve), "solve: package 2 of 4, 3 of 8 parts");
        assert_eq!(line(Phase::Commit), "commit: package 2 of 4");
        let before = View { package: None, committed: 0, ..view(Phase::Pilot) };
        assert_eq!(before.line(), "pilot: 0 of 4 packages committed");
        let over =
            View { ending: Some(Ending::Failed("no worker for 60 s".to_owned())), ..view(Phase::Over) };
        assert_eq!(over.line(), "over: no worker for 60 s; 1 of 4 packages committed");
    }

    #[test]
    fn a_worker_does_what_its_activity_says() {
        let now = |activity| {
            let pace = Some(Duration::from_secs(2));
            let worker = WorkerId(1);
            let (draining, preparing) = (false, false);
            WorkerView {
                worker,
                applied: 1,
                leased: 2,
                held: 3,
                pace,
                draining,
                preparing,
                solving: 1,
                activity,
            }
            .now()
        };
        assert_eq!(now(Activity::Calibrates), "runs 2 shards");
        assert_eq!(now(Activity::Solves), "solves 1 part");
        assert_eq!(now(Activity::Encodes), "prepares: encodes the prompts");
    }
}
