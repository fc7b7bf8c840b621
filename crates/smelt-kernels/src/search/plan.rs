//! Where the search of an affine group starts, and how long it goes on.
//!
//! A start is a window of the group's range: its width as a share `f` of the range, and how far its
//! middle lies off the middle of the range, in steps. Shifts beyond half a step only rename the codes. So
//! the starts fill a rectangle `[f0, f1] × [-1/2, 1/2)`, and the points of a rank-1 lattice (`f` in equal
//! steps, the shift by the golden ratio) fill it evenly for any number of them: as many starts on a grid
//! of widths and shifts leave half as much avoidable error again at 4 bits.
//!
//! `[f0, f1]` holds the widths of the best windows: the 2 % and 98 % quantiles of what 158 passes find
//! in Gaussian groups. Those of Student's t with five degrees of freedom and of trained weights differ
//! by a few hundredths. Rectangles half again as wide, either way, are worse, the more so the fewer the
//! starts.
//!
//! Every second window begins at its upper end, with a negative scale. In exact arithmetic it is the
//! same window; but the bias is rounded when it is stored, and other ends have other neighbours, which
//! lowers the error at 6 and 8 bits.
//!
//! More passes bring little: on Gaussian weights at 4 bits in groups of 64, 8, 26 and 100 passes leave
//! 80.5, 78.8 and 78.5 % of plain rounding's squared error.

use crate::Format;
use crate::search::Effort;

/// Most windows of any effort.
const MOST: usize = 90;

/// Most windows that are refined.
pub(super) const KEPT: usize = 3;

/// The golden ratio's fraction.
const GOLDEN: f64 = 0.618_033_988_749_894_9;

/// A window of a group's range.
#[derive(Clone, Copy, Default)]
pub(super) struct Start {
    /// The step, as a share of the range.
    pub(super) step: f32,
    /// From the middle of the range to that of the window, as a share of the range.
    pub(super) shift: f32,
    /// Whether code 0 is at the upper end.
    pub(super) down: bool,
}

/// What a search does with every group.
pub(super) struct Plan {
    /// The greatest code.
    pub(super) levels: f32,
    starts: [Start; MOST],
    windows: usize,
    /// Windows that are refined.
    pub(super) kept: usize,
    /// Least-squares steps of each of them, after the one that every window gets.
    pub(super) refits: usize,
}

impl Plan {
    /// The plan for an affine format.
    pub(super) fn new(format: Format, effort: Effort) -> Self {
        // With plain rounding's own pair: 8, 26 and 100 passes.
        let (windows, kept, refits) = match effort {
            Effort::Fast => (5, 1, 2),
            Effort::Default => (21, 2, 2),
            Effort::Best => (MOST, KEPT, 3),
        };
        let levels = f64::from((1u16 << format.bits()) - 1);
        let (least, most) = widths(format);
        let mut starts = [Start::default(); MOST];
        for (k, start) in starts.iter_mut().enumerate().take(windows) {
            let width = least + (most - least) * (k as f64 + 0.5) / windows as f64;
            let shift = (k as f64 * GOLDEN).fract() - 0.5;
            let (step, shift) = ((width / levels) as f32, (shift / levels) as f32);
            *start = Start { step, shift, down: k % 2 == 1 };
        }
        Self { levels: levels as f32, starts, windows, kept, refits }
    }

    /// The windows.
    pub(super) fn starts(&self) -> &[Start] {
        &self.starts[..self.windows]
    }
}

/// Widths of the best windows, see the module.
fn widths(format: Format) -> (f64, f64) {
    let by_size = match format.bits() {
        2 => [(0.62, 0.88), (0.52, 0.78), (0.43, 0.68)],
        3 => [(0.85, 1.02), (0.785, 0.96), (0.69, 0.89)],
        4 => [(0.945, 1.05), (0.915, 1.03), (0.88, 0.99)],
        5 => [(0.98, 1.07), (0.965, 1.05), (0.953, 1.03)],
        6 => [(0.992, 1.07), (0.987, 1.06), (0.98, 1.045)],
        _ => [(0.998, 1.05); 3],
    };
    match format.group_size() {
        32 => by_size[0],
        64 => by_size[1],
        _ => by_size[2],
    }
}
