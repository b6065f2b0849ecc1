//! Parts of a file that were never written.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Whether these bytes of a file lie in a hole: they read as zeros and take no place on the disk. Moves the file's cursor.
///
/// On a file system that does not report holes, all bytes count as written.
///
/// # Errors
/// When the file cannot be asked.
pub fn in_hole(file: &File, bytes: Range<u64>) -> io::Result<bool> {
    match seek(file, SeekFrom::Data(bytes.start)) {
        Ok(next) => Ok(next >= bytes.end),
        // There is nothing but a hole up to the file's end.
        Err(Errno::NXIO) => Ok(file.metadata()?.len() >= bytes.end),
        Err(Errno::INVAL) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_was_never_written_is_a_hole() {
        const MIB: u64 = 1 << 20;
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 * MIB).unwrap();
        file.write_all_at(&[1], 2 * MIB).unwrap();
        let hole = |bytes| in_hole(&file, bytes).unwrap();
        assert!(hole(0..MIB) && hole(3 * MIB..4 * MIB));
        assert!(!hole(0..2 * MIB + 1) && !hole(2 * MIB..3 * MIB));
        // What lies past the end is no hole.
        assert!(!hole(3 * MIB..5 * MIB));
    }
}
