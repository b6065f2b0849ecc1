//! What a worker does before it takes orders, in the order that [`Assignment`] holds: it opens the job's model, checks that it is the
//! coordinator's, encodes prompts, and loads the weights.

mod assignment;
mod error;
mod loading;
mod model;
mod path;
mod received;

pub use assignment::{Assignment, ShowEncoding, WorkerProcess};
pub use error::{PreparationError, Result};
pub use loading::load;
pub use model::{JobModel, compute_type};
pub use path::{not_a_pipeline, not_here};
pub use received::ReceivedJob;
