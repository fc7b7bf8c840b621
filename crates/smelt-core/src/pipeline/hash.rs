//! BLAKE3 of a tensor whose bytes come in any order, while they are still in the processor's cache.
//!
//! Workers finish blocks out of order, and reading a tensor again for its hash would cost more than
//! the hash. BLAKE3 is a tree over chunks of 1024 bytes: the subtrees that lie whole in a block are
//! hashed there and then, two neighbours become their parent as soon as both are there, and only the
//! bytes of chunks that a block covers in part are kept until the rest comes. What is held for a tensor
//! is a few values for each gap in it, of which there are no more than workers.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use blake3::hazmat::{
    ChainingValue, HasherExt as _, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};
use blake3::{CHUNK_LEN, Hash, Hasher};

const CHUNK: u64 = CHUNK_LEN as u64;

/// The hash of `len` bytes that are yet to come.
#[derive(Debug)]
pub(super) struct AnyOrder {
    len: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Subtrees by the place of their first byte: how long they are, and their value.
    nodes: BTreeMap<u64, (u64, ChainingValue)>,
    /// Chunks that came in part, by the place of their first byte.
    edges: BTreeMap<u64, Edge>,
}

#[derive(Debug)]
struct Edge {
    bytes: Vec<u8>,
    missing: usize,
}

impl AnyOrder {
    /// Awaits `len` bytes.
    pub(super) fn new(len: u64) -> Self {
        Self { len, state: Mutex::default() }
    }

    /// Takes `bytes`, which begin `offset` bytes from the first; none may come twice.
    pub(super) fn add(&self, offset: u64, bytes: &[u8]) {
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let size = self.subtree(at, rest.len() as u64);
            let taken = if size > 0 { size as usize } else { rest.len().min((CHUNK - at % CHUNK) as usize) };
            let (now, later) = rest.split_at(taken);
            if size > 0 {
                let value = Hasher::new().set_input_offset(at).update(now).finalize_non_root();
                self.lock().insert(at, size, value, self.len);
            } else {
                self.lock().edge(at, now, self.len);
            }
            (at, rest) = (at + taken as u64, later);
        }
    }

    /// The hash, once every byte has come.
    pub(super) fn finish(&self) -> Hash {
        let state = self.lock();
        if self.len <= CHUNK {
            return blake3::hash(state.edges.get(&0).map_or(&[][..], |edge| &edge.bytes));
        }
        let left = left_subtree_len(self.len);
        merge_subtrees_root(&state.value(0, left), &state.value(left, self.len - left), Mode::Hash)
    }

    /// Length of the largest subtree that begins at `at` and ends within `available` bytes; 0 if
    /// not even a chunk does.
    fn subtree(&self, at: u64, available: u64) -> u64 {
        if self.len <= CHUNK || !at.is_multiple_of(CHUNK) {
            return 0;
        }
        if available < CHUNK {
            // The last chunk may be shorter than others.
            return if at + available == self.len { available } else { 0 };
        }
        let most = if at == 0 { left_subtree_len(self.len) } else { 1 << at.trailing_zeros() };
        (1 << available.ilog2()).min(most)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Adds a subtree, and its parents as far as they are complete. The root is none of them: it is
    /// made in another way.
    fn insert(&mut self, at: u64, size: u64, value: ChainingValue, len: u64) {
        let (mut at, mut size, mut value) = (at, size, value);
        while size >= CHUNK && size.is_power_of_two() && 2 * size < len {
            let sibling = at ^ size;
            match self.nodes.get(&sibling) {
                Some(&(other, found)) if other == size => {
                    self.nodes.remove(&sibling);
                    let (left, right) = if sibling < at { (found, value) } else { (value, found) };
                    value = merge_subtrees_non_root(&left, &right, Mode::Hash);
                    (at, size) = (at.min(sibling), 2 * size);
                }
                _ => break,
            }
        }
        self.nodes.insert(at, (size, value));
    }

    /// Adds bytes of one chunk, and the chunk when it is complete.
    fn edge(&mut self, at: u64, bytes: &[u8], len: u64) {
        let start = at - at % CHUNK;
        let size = CHUNK.min(len - start) as usize;
        let edge = self.edges.entry(start).or_insert_with(|| Edge { bytes: vec![0; size], missing: size });
        let place = (at - start) as usize;
        edge.bytes[place..place + bytes.len()].copy_from_slice(bytes);
        edge.missing -= bytes.len();
        if edge.missing == 0 && len > CHUNK {
            let value = Hasher::new().set_input_offset(start).update(&edge.bytes).finalize_non_root();
            self.edges.remove(&start);
            self.insert(start, size as u64, value, len);
        }
    }

    /// The value of a subtree of the finished tree.
    fn value(&self, at: u64, size: u64) -> ChainingValue {
        match self.nodes.get(&at) {
            Some(&(found, value)) if found == size => value,
            _ => {
                assert!(size > CHUNK, "a hash was asked for before all bytes had come");
                let left = left_subtree_len(size);
                let (a, b) = (self.value(at, left), self.value(at + left, size - left));
                merge_subtrees_non_root(&a, &b, Mode::Hash)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
    }

    proptest! {
        #[test]
        fn any_order_of_any_pieces_gives_the_hash_of_the_whole(
            len in prop_oneof![0..5usize, 1000..1100usize, 2000..2100usize, 0..70_000usize, Just(65_536usize)],
            cuts in prop::collection::vec(0.0..1.0f64, 0..40),
            order in any::<u64>(),
        ) {
            let all = bytes(len);
            let mut ends: Vec<usize> = cuts.iter().map(|cut| (cut * len as f64) as usize).collect();
            ends.extend([0, len]);
            ends.sort_unstable();
            let mut pieces: Vec<_> = ends.windows(2).map(|pair| pair[0]..pair[1]).collect();
            pieces.sort_by_key(|piece| (piece.start as u64).wrapping_mul(order | 1));
            let hash = AnyOrder::new(len as u64);
            for piece in pieces {
                hash.add(piece.start as u64, &all[piece]);
            }
            prop_assert_eq!(hash.finish(), blake3::hash(&all));
        }

        #[test]
        fn blocks_of_one_size_leave_few_values(block in 1..9000usize, count in 1..60usize) {
            let all = bytes(block * count);
            let hash = AnyOrder::new(all.len() as u64);
            for (index, piece) in all.chunks(block).enumerate() {
                hash.add((index * block) as u64, piece);
                let state = hash.lock();
                prop_assert!(state.nodes.len() <= 20 && state.edges.len() <= 1, "{state:?}");
            }
            prop_assert_eq!(hash.finish(), blake3::hash(&all));
        }
    }
}
