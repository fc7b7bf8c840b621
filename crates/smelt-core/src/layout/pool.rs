//! Buffers that are used again, so that a run allocates its memory once.

/// Spare buffers, and a count of what is in use.
///
/// All buffers together, spare ones too, hold at most a quarter more than was ever in use at once:
/// a spare one is used again only for a length near its own, and goes where room is needed.
#[derive(Debug, Default)]
pub struct Pool {
    spare: Vec<Vec<u8>>,
    /// Bytes of all buffers, in use or not.
    held: usize,
    live: usize,
    peak: usize,
}

impl Pool {
    /// A buffer of `len` bytes whose contents mean nothing.
    pub fn take(&mut self, len: usize) -> Vec<u8> {
        self.live += len;
        self.peak = self.peak.max(self.live);
        let fits = |spare: &Vec<u8>| (len..=len + len / 4).contains(&spare.capacity());
        let mut buffer = match self.spare.iter().rposition(fits) {
            Some(place) => self.spare.swap_remove(place),
            None => self.allocate(len),
        };
        buffer.resize(len, 0);
        buffer
    }

    fn allocate(&mut self, len: usize) -> Vec<u8> {
        while self.held + len > self.peak
            && let Some(spare) = self.spare.pop()
        {
            self.held -= spare.capacity();
        }
        let buffer = Vec::with_capacity(len);
        self.held += buffer.capacity();
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
        self.held -= self.spare.drain(..).map(|spare| spare.capacity()).sum::<usize>();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn spare_buffers_do_not_add_up(steps in prop::collection::vec((1..2000usize, any::<bool>()), 1..60)) {
            let (mut pool, mut taken) = (Pool::default(), Vec::new());
            for (len, give) in steps {
                match taken.pop() {
                    Some(buffer) if give => pool.give(buffer),
                    kept => {
                        taken.extend(kept);
                        taken.push(pool.take(len));
                    }
                }
                let held = taken.iter().chain(&pool.spare).map(Vec::capacity).sum::<usize>();
                prop_assert_eq!(held, pool.held);
                prop_assert!(held <= pool.peak() + pool.peak() / 4);
            }
            pool.trim();
            prop_assert_eq!(pool.held, taken.iter().map(Vec::capacity).sum::<usize>());
        }
    }
}
