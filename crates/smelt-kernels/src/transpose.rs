//! Transposition in square blocks, so that both sides stay within the cache.

/// Side of a block: a cache line of the smallest elements.
const SIDE: usize = 64;

/// Transposes a matrix of `rows` × `cols` elements of `N` bytes.
fn blocks<const N: usize>(input: &[u8], rows: usize, cols: usize, out: &mut [u8]) {
    let (input, out) = (input.as_chunks::<N>().0, out.as_chunks_mut::<N>().0);
    for row in (0..rows).step_by(SIDE) {
        for col in (0..cols).step_by(SIDE) {
            let end = rows.min(row + SIDE);
            for c in col..cols.min(col + SIDE) {
                let line = &mut out[c * rows + row..c * rows + end];
                let column = input[row * cols + c..].iter().step_by(cols);
                for (out, element) in line.iter_mut().zip(column) {
                    *out = *element;
                }
            }
        }
    }
}

/// Transposes by the size of the elements; the lengths fit.
pub(crate) fn transpose(input: &[u8], (rows, cols): (usize, usize), size: usize, out: &mut [u8]) {
    match size {
        1 => blocks::<1>(input, rows, cols, out),
        2 => blocks::<2>(input, rows, cols, out),
        4 => blocks::<4>(input, rows, cols, out),
        8 => blocks::<8>(input, rows, cols, out),
        other => panic!("elements of {other} bytes cannot be transposed: only 1, 2, 4 and 8"),
    }
}
