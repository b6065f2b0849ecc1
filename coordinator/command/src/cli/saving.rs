//! When sums are saved.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

const NEVER: &str = "never";
const STOP: &str = "stop";

/// When a worker saves its sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveSums {
    /// Not at all.
    Never,
    /// Before it leaves, where it is asked to stop.
    AtStop,
    /// Then, and again after so long at least.
    Every(Duration),
}

impl SaveSums {
    /// The least time between two times at which sums are saved while a job runs.
    pub fn period(self) -> Option<Duration> {
        match self {
            Self::Every(period) => Some(period),
            Self::Never | Self::AtStop => None,
        }
    }
}

impl FromStr for SaveSums {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            NEVER => Ok(Self::Never),
            STOP => Ok(Self::AtStop),
            _ => {
                let period = humantime::parse_duration(text);
                let refused = |error| format!("{error}: give a time such as 10min, {STOP} or {NEVER}");
                Ok(Self::Every(period.map_err(refused)?))
            }
        }
    }
}

impl fmt::Display for SaveSums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str(NEVER),
            Self::AtStop => f.write_str(STOP),
            Self::Every(period) => humantime::format_duration(*period).fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_nothing_else() {
        let every = |seconds| SaveSums::Every(Duration::from_secs(seconds));
        let known = [
            ("never", SaveSums::Never),
            ("stop", SaveSums::AtStop),
            ("90s", every(90)),
            ("10min", every(600)),
        ];
        for (text, saves) in known {
            assert_eq!(text.parse(), Ok(saves));
            assert_eq!(saves.to_string().parse(), Ok(saves));
        }
        let problem = "ten".parse::<SaveSums>().unwrap_err();
        assert!(problem.ends_with("give a time such as 10min, stop or never"), "{problem}");
    }
}
