//! The C++ side: connections to all ranks of a group by Gloo.

// The calls below go to C++ that is written for them: `mesh.h` says what may be called when.
#![allow(unsafe_code)]
#![allow(unreachable_pub)]

#[cxx::bridge(namespace = "obsdiff")]
mod bridge {
    /// Bytes of a buffer, and the rank they go to or come from.
    #[derive(Clone, Copy, Debug)]
    struct Piece {
        rank: usize,
        offset: usize,
        length: usize,
    }

    /// How an exchange ended.
    #[derive(Debug)]
    enum Ended {
        /// All pieces went through.
        Well,
        /// The mesh was ended here.
        Here,
        /// A peer has left or its connection is lost.
        Lost,
        /// Nothing came from a peer for too long.
        Silent,
    }

    /// How an exchange ended, at which peer and why.
    #[derive(Debug)]
    struct Report {
        ended: Ended,
        rank: usize,
        why: String,
    }

    unsafe extern "C++" {
        include!("obsdiff-worker/src/collective/gloo/mesh.h");

        type Mesh;

        /// A rank's sockets at this address of the machine, not connected yet.
        fn open_mesh(host: &str, rank: usize, world: usize, connect_millis: u64) -> Result<UniquePtr<Mesh>>;

        /// Where a peer connects to.
        fn address(self: &Mesh, peer: usize) -> Result<Vec<u8>>;

        /// Connects to a peer by the address that it has for this rank.
        fn connect(self: &Mesh, peer: usize, address: &[u8]) -> Result<Report>;

        /// Says that all peers are connected: from now on they are watched.
        fn connected(self: &Mesh) -> Result<()>;

        /// Watches the peers until the mesh is ended: a blocked exchange hears of a lost peer by this alone.
        fn watch(self: &Mesh) -> Result<()>;

        /// Frees blocked calls and lets later ones fail. `hard` has the connections reset, so that peers notice at once.
        fn end(self: &Mesh, hard: bool) -> Result<()>;

        /// Sends and receives pieces, all at once. Every rank makes the same number of exchanges.
        fn exchange(
            self: &Mesh,
            send: &[u8],
            outgoing: &[Piece],
            receive: &mut [u8],
            incoming: &[Piece],
            silence_millis: u64,
        ) -> Result<Report>;
    }
}

pub(super) use bridge::{Ended, Mesh, Piece, Report, open_mesh};

// SAFETY: the class has no thread of its own to which its state is bound, and is destroyed like any other object.
unsafe impl Send for Mesh {}
// SAFETY: every state that changes is behind the class's mutex or Gloo's own; exchanges are made by one thread at a time, as their
// caller `GlooRank` needs `&mut self`.
unsafe impl Sync for Mesh {}
