//! Lives: each coordinator that runs a job gets a number of its own, so that its worker ids and epochs never meet earlier ones.

use obsdiff_store::layout::LIVES;
use obsdiff_store::{PutOutcome, Result};

use super::CoordinatorStore;

impl CoordinatorStore {
    /// Takes the next life: 0 for the job's first coordinator. Two coordinators never get the same one.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn raise_life(&self) -> Result<u32> {
        let mut life = self.latest_life().await?.map_or(0, |latest| latest.saturating_add(1));
        while self.put_empty_new(&object(life)).await? == PutOutcome::Present {
            life = life.saturating_add(1);
        }
        Ok(life)
    }

    /// The last life that was taken. A coordinator with a smaller one has a successor and must stop.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn latest_life(&self) -> Result<Option<u32>> {
        let names = self.list(LIVES).await?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).max())
    }
}

fn object(life: u32) -> String {
    format!("{LIVES}/{life:08}")
}
