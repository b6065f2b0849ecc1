//! Lives: each coordinator that runs a job gets a number of its own, so that its worker ids and epochs never meet earlier ones.

use obsdiff_store::layout::LIVES;
use obsdiff_store::{PutOutcome, Result, StoreError};

use super::CoordinatorStore;

impl CoordinatorStore {
    /// Takes the next life: 0 for the job's first coordinator. Two coordinators never get the same one.
    ///
    /// # Errors
    /// When the store fails, or there is an object of the last number that a life can have.
    pub async fn raise_life(&self) -> Result<u32> {
        let mut life = match self.latest_life().await? {
            Some(latest) => self.life_after(latest)?,
            None => 0,
        };
        while self.put_empty_new(&object(life)).await? == PutOutcome::Present {
            life = self.life_after(life)?;
        }
        Ok(life)
    }

    fn life_after(&self, life: u32) -> Result<u32> {
        life.checked_add(1).ok_or_else(|| StoreError::Damaged {
            store: self.name().to_owned(),
            object: object(life),
            problem: "no life can have a higher number".to_owned(),
        })
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
