//! What a worker does before it takes orders: it opens the job's model, checks that it is the coordinator's, and loads the weights.

mod error;
mod loading;
mod model;
mod path;
mod received;

pub use error::{PreparationError, Result};
pub use loading::load;
pub use model::{JobModel, compute_type};
pub use path::not_a_pipeline;
pub use received::ReceivedJob;
