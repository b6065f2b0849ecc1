//! Where in a GPU's memory kernels and libraries read and write.

use std::marker::PhantomData;

use crate::device::numbers::DeviceNumbers;

/// What a kernel or a library reads.
#[derive(Debug)]
pub(super) struct In<'a, T> {
    pub(super) pointer: u64,
    of: PhantomData<&'a T>,
}

impl<T> Clone for In<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for In<'_, T> {}

impl<'a, T> In<'a, T> {
    /// Numbers that were given away for foreign code.
    pub(super) const fn of(numbers: &'a DeviceNumbers) -> Self {
        Self::at(numbers.address())
    }

    /// From an address of a buffer on.
    pub(super) const fn at(pointer: u64) -> Self {
        In { pointer, of: PhantomData }
    }

    /// The same for a kernel or a product that gets the type of its numbers as an argument.
    pub(super) fn bytes(self) -> In<'a, u8> {
        In { pointer: self.pointer, of: PhantomData }
    }

    /// From so many bytes behind its first one.
    pub(super) fn skip(self, bytes: usize) -> Self {
        In { pointer: self.pointer + bytes as u64, of: PhantomData }
    }

    /// A null pointer, where a kernel may have none.
    pub(super) const fn none() -> Self {
        In { pointer: 0, of: PhantomData }
    }
}

impl<'a> In<'a, f64> {
    /// The same for a kernel that copies values of four bytes: each is two of them.
    pub(super) fn halves(self) -> In<'a, f32> {
        In { pointer: self.pointer, of: PhantomData }
    }
}

impl<'a> Out<'a, f64> {
    /// As [`In::halves`].
    pub(super) fn halves(self) -> Out<'a, f32> {
        Out { pointer: self.pointer, of: PhantomData }
    }
}

/// What a kernel or a library writes, and may read.
#[derive(Debug)]
pub(super) struct Out<'a, T> {
    pub(super) pointer: u64,
    of: PhantomData<&'a mut T>,
}

impl<'a, T> Out<'a, T> {
    /// From an address of a buffer on.
    pub(super) const fn at(pointer: u64) -> Self {
        Out { pointer, of: PhantomData }
    }

    /// The same for a kernel or a product that gets the type of its numbers as an argument.
    pub(super) fn bytes(self) -> Out<'a, u8> {
        Out { pointer: self.pointer, of: PhantomData }
    }
}
