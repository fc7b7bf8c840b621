//! Buffers that are used again, so that a run allocates its memory once.

/// Spare buffers, and a count of what is in use.
#[derive(Debug, Default)]
pub struct Pool {
    spare: Vec<Vec<u8>>,
    live: usize,
    peak: usize,
}

impl Pool {
    /// A buffer of `len` bytes whose contents mean nothing.
    pub fn take(&mut self, len: usize) -> Vec<u8> {
        self.live += len;
        self.peak = self.peak.max(self.live);
        let mut buffer = self.spare.pop().unwrap_or_default();
        if buffer.capacity() < len {
            // Growing would copy what nobody wants, and hold both for a moment.
            buffer = Vec::new();
            buffer.reserve_exact(len);
        }
        buffer.resize(len, 0);
        buffer
    }

    /// Takes a buffer back.
    pub fn give(&mut self, buffer: Vec<u8>) {
        self.live -= buffer.len();
        self.spare.push(buffer);
    }

    /// The most bytes that were in use at once.
    pub fn peak(&self) -> usize {
        self.peak
    }

    /// Frees what is not in use.
    pub fn trim(&mut self) {
        self.spare.clear();
    }
}
