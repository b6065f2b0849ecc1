//! Groups of one: all that a process can be in which has no way to others.

use super::{Abort, Collective, CollectiveError, Local, Member, Result, Transport};

/// Joins groups of one, and refuses larger ones in words.
#[derive(Clone, Default)]
pub struct Alone(Local);

impl Transport for Alone {
    fn join(&self, member: Member, abort: &Abort) -> Result<Box<dyn Collective>> {
        match member.world {
            1 => self.0.join(member, abort),
            world => Err(CollectiveError::Transport(format!(
                "a group of {world} workers needs a network collective, which this build lacks: build obsdiff with --features gloo, or run one worker"
            ))),
        }
    }
}
