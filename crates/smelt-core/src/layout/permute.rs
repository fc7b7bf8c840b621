//! Moves a block's elements into another order of axes.
//!
//! Unit axes and axes that stay neighbours are folded first. What is left in practice is a batch of
//! matrix transposes, which the kernel does in cache-sized tiles; anything else walks the result.

/// Writes `data`, a row-major block with axes of `lens` elements of `size` bytes, into `out` with
/// axis `i` of the result being axis `perm[i]` of the block.
pub(super) fn permute(data: &[u8], lens: &[u64], perm: &[usize], size: usize, out: &mut [u8]) {
    let (mut lens, mut perm) = fold(lens, perm);
    let mut size = size;
    if perm.last().is_some_and(|&last| last + 1 == perm.len()) {
        size *= lens.pop().unwrap_or(1);
        perm.pop();
    }
    apply(data, &lens, &perm, size, out);
}

fn apply(data: &[u8], lens: &[usize], perm: &[usize], size: usize, out: &mut [u8]) {
    match perm {
        [] => out.copy_from_slice(data),
        [0, rest @ ..] => {
            let inner: Vec<usize> = rest.iter().map(|axis| axis - 1).collect();
            let bytes = data.len() / lens[0];
            for (from, to) in data.chunks_exact(bytes).zip(out.chunks_exact_mut(bytes)) {
                apply(from, &lens[1..], &inner, size, to);
            }
        }
        [1, 0] if matches!(size, 1 | 2 | 4 | 8) => {
            smelt_kernels::transpose(data, lens[0], lens[1], size, out);
        }
        _ => walk(data, lens, perm, size, out),
    }
}

/// Drops axes of one element and joins axes that are neighbours before and after.
fn fold(lens: &[u64], perm: &[usize]) -> (Vec<usize>, Vec<usize>) {
    let kept: Vec<usize> = perm.iter().copied().filter(|&axis| lens[axis] != 1).collect();
    // Runs of the result's axes that are consecutive in the block, where only unit axes lie between.
    let follows = |a: usize, b: usize| a < b && (a + 1..b).all(|axis| lens[axis] == 1);
    let mut merged: Vec<(usize, usize)> = Vec::new();
    let mut last = None;
    for axis in kept {
        match (last, merged.last_mut()) {
            (Some(before), Some((_, len))) if follows(before, axis) => *len *= lens[axis] as usize,
            _ => merged.push((axis, lens[axis] as usize)),
        }
        last = Some(axis);
    }
    let mut order: Vec<(usize, usize)> = merged.clone();
    order.sort_unstable();
    let place = |axis: usize| order.iter().position(|&(first, _)| first == axis).expect("it is one of them");
    let perm = merged.iter().map(|&(first, _)| place(first)).collect();
    (order.iter().map(|&(_, len)| len).collect(), perm)
}

/// Any permutation, one element after another in the order of the result.
fn walk(data: &[u8], lens: &[usize], perm: &[usize], size: usize, out: &mut [u8]) {
    let mut strides = vec![size; lens.len()];
    for axis in (1..lens.len()).rev() {
        strides[axis - 1] = strides[axis] * lens[axis];
    }
    let mut at = vec![0; perm.len()];
    let mut from = 0;
    for element in out.chunks_exact_mut(size) {
        element.copy_from_slice(&data[from..from + size]);
        for (place, &axis) in at.iter_mut().zip(perm).rev() {
            *place += 1;
            from += strides[axis];
            if *place < lens[axis] {
                break;
            }
            from -= strides[axis] * lens[axis];
            *place = 0;
        }
    }
}
