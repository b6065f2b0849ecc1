//! The worker of a distributed job. Empty so far: `obsdiff run` drives the engine in its own process.
