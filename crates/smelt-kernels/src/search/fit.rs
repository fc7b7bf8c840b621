//! The scale and bias of an affine group with the least weighted squared error.
//!
//! A *pass* measures one pair `(s, b)`, as it would be stored, with the nearest codes, and gives the
//! pair that is best for these codes:
//!
//! ```text
//! t = (w - b) * (1 / s),  q = round(clamp(t, 0, n)),  d = t - q
//! Q = Σωq / Σω,  D = Σωd / Σω = (Σω(w - lo) / Σω - (b - lo)) / s - Q,  lo the least w
//! c = Σωdq - D Σωq,  v = Σωqq - Q Σωq,  β = c / v           how d depends on q
//! error = s² Σωdd,   after the refit  s² (Σωdd - D Σωd - β c)
//! s' = T(s + s β),  b' = T(b + s D + (s - s') Q)            b' knows the stored s'
//! ```
//!
//! Sums over the remainders `d` lose nothing by cancellation, unlike the usual ones over the weights:
//! at 8 bits the error is a hundred-thousandth of `Σωww`. The pair is rounded to the stored type `T`
//! before it is measured, so each pass tries something that can be stored.
//!
//! First comes plain rounding's pair, then the lattice the values may lie on, then the windows of
//! [`Plan`]. One step from a start shows how good its neighbourhood is: only those with the least error
//! after the refit go on. The best pair measured at any time wins; plain rounding's at a tie.
//!
//! Where something is not finite, comparisons fail and plain rounding's pair stays.

use std::marker::PhantomData;

use crate::arch::{Kernel, LANES, Simd};
use crate::float::Element;
use crate::search::batch::Batch;
use crate::search::lattice::lattice;
use crate::search::plan::{KEPT, Plan, Start};

/// Finds the pairs of a run of groups. `WEIGHTED`: by `weights`, else all count the same.
pub(super) struct Fit<'a, T, const WEIGHTED: bool> {
    pub(super) values: &'a [f32],
    /// As long as the values if `WEIGHTED`, else empty.
    pub(super) weights: &'a [f32],
    pub(super) group_size: usize,
    pub(super) plan: &'a Plan,
    /// Plain rounding's scales as stored, which become the best ones.
    pub(super) scales: &'a mut [f32],
    /// Its biases.
    pub(super) biases: &'a mut [f32],
    pub(super) element: PhantomData<T>,
}

impl<T: Element, const WEIGHTED: bool> Kernel for Fit<'_, T, WEIGHTED> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut batch = Batch::new();
        let size = LANES * self.group_size;
        let pairs = self.scales.chunks_mut(LANES).zip(self.biases.chunks_mut(LANES));
        for (k, (scales, biases)) in pairs.enumerate() {
            let end = self.values.len().min((k + 1) * size);
            let values = &self.values[k * size..end];
            let (values, weights) = if WEIGHTED {
                batch.both(values, &self.weights[k * size..end], self.group_size)
            } else {
                (batch.values(values, self.group_size), [].as_slice())
            };
            let plain = Pair { scale: load_some(s, scales), bias: load_some(s, biases) };
            let groups = Groups::<S, T, WEIGHTED>::new(s, values, weights, self.plan.levels);
            let best = groups.search(plain, self.plan);
            store_some(s, best.scale, scales);
            store_some(s, best.bias, biases);
        }
    }
}

/// Up to eight numbers, with zeros behind them.
#[inline(always)]
pub(super) fn load_some<S: Simd>(s: S, from: &[f32]) -> S::F {
    let mut lanes = [0.0; LANES];
    lanes[..from.len()].copy_from_slice(from);
    s.load(&lanes)
}

/// The first lanes.
#[inline(always)]
pub(super) fn store_some<S: Simd>(s: S, a: S::F, to: &mut [f32]) {
    let mut lanes = [0.0; LANES];
    s.store(a, &mut lanes);
    to.copy_from_slice(&lanes[..to.len()]);
}

/// A scale and a bias for each lane.
#[derive(Clone, Copy)]
pub(super) struct Pair<F> {
    pub(super) scale: F,
    pub(super) bias: F,
}

/// A pair and its error, up to a factor that is the same for all pairs of a group.
#[derive(Clone, Copy)]
struct Tried<F> {
    error: F,
    pair: Pair<F>,
}

/// `a`, or `b` where its error is less; and the other.
#[inline(always)]
fn sort<S: Simd>(s: S, a: Tried<S::F>, b: Tried<S::F>) -> [Tried<S::F>; 2] {
    let less = s.less(b.error, a.error);
    let pick = |a: Tried<S::F>, b: Tried<S::F>| Tried {
        error: s.select(less, a.error, b.error),
        pair: Pair {
            scale: s.select(less, a.pair.scale, b.pair.scale),
            bias: s.select(less, a.pair.bias, b.pair.bias),
        },
    };
    [pick(a, b), pick(b, a)]
}

/// The sums of a pass, named as in the module: `wdq` is Σωdq.
struct Sums<F> {
    wq: F,
    wqq: F,
    wdq: F,
    wdd: F,
}

/// Eight groups and what a pass needs to know of them.
struct Groups<'a, S: Simd, T, const WEIGHTED: bool> {
    s: S,
    values: &'a [[f32; LANES]],
    weights: &'a [[f32; LANES]],
    levels: S::F,
    /// Σω.
    total: S::F,
    /// 1 / Σω.
    share: S::F,
    least: S::F,
    /// The mean above the least: Σω(w - lo) / Σω.
    mean: S::F,
    range: S::F,
    middle: S::F,
    /// n / range: makes scales comparable among groups of any magnitude.
    unit: S::F,
    element: PhantomData<T>,
}

impl<'a, S: Simd, T: Element, const WEIGHTED: bool> Groups<'a, S, T, WEIGHTED> {
    #[inline(always)]
    fn new(s: S, values: &'a [[f32; LANES]], weights: &'a [[f32; LANES]], levels: f32) -> Self {
        let (mut least, mut greatest) = (s.splat(f32::INFINITY), s.splat(f32::NEG_INFINITY));
        for x in values {
            least = s.min(s.load(x), least);
            greatest = s.max(s.load(x), greatest);
        }
        let (mut total, mut sum) = (s.splat(0.0), s.splat(0.0));
        for (k, x) in values.iter().enumerate() {
            let w = if WEIGHTED { s.load(&weights[k]) } else { s.splat(1.0) };
            total = s.add(total, w);
            sum = s.add(sum, s.mul(w, s.sub(s.load(x), least)));
        }
        let (range, half) = (s.sub(greatest, least), s.splat(0.5));
        let levels = s.splat(levels);
        Self {
            s,
            values,
            weights,
            levels,
            total,
            share: s.div(s.splat(1.0), total),
            least,
            mean: s.div(sum, total),
            range,
            middle: s.add(s.mul(least, half), s.mul(greatest, half)),
            unit: s.div(levels, range),
            element: PhantomData,
        }
    }

    /// The best pair found.
    #[inline(always)]
    fn search(&self, plain: Pair<S::F>, plan: &Plan) -> Pair<S::F> {
        let s = self.s;
        let mut best = Tried { error: s.splat(f32::INFINITY), pair: plain };
        let mut kept = [best; KEPT];
        self.start(plain, &mut best, &mut kept[..plan.kept]);
        if let Some(step) = lattice(s, self.values, self.least, self.range, self.levels) {
            let pair = Pair { scale: T::round(s, step), bias: self.least };
            self.start(pair, &mut best, &mut kept[..plan.kept]);
            // A pass knows an error of 0 only to its own rounding, so that a neighbour might win.
            let exact = Tried { error: s.select(self.exact(pair), s.splat(f32::NAN), s.splat(-1.0)), pair };
            [best, _] = sort(s, best, exact);
        }
        for start in plan.starts() {
            self.start(self.window(*start), &mut best, &mut kept[..plan.kept]);
        }
        for tried in &kept[..plan.kept] {
            let mut pair = tried.pair;
            for _ in 0..plan.refits {
                pair = self.pass(pair, &mut best).pair;
            }
        }
        best.pair
    }

    /// Where a pair gives all values of a group without any difference.
    #[inline(always)]
    fn exact(&self, pair: Pair<S::F>) -> S::I {
        let s = self.s;
        let mut same = s.splat32(u32::MAX);
        for x in self.values {
            let q = s.round_even(s.div(s.sub(s.load(x), pair.bias), pair.scale));
            let q = s.min(s.max(q, s.splat(0.0)), self.levels);
            let value = s.add(s.mul(pair.scale, q), pair.bias);
            same = s.and(same, s.equal(s.load(x), value));
        }
        same
    }

    /// One pass; its refit joins those that are kept if it promises more.
    #[inline(always)]
    fn start(&self, pair: Pair<S::F>, best: &mut Tried<S::F>, kept: &mut [Tried<S::F>]) {
        let mut refit = self.pass(pair, best);
        for kept in kept {
            [*kept, refit] = sort(self.s, *kept, refit);
        }
    }

    /// The stored pair of a window.
    #[inline(always)]
    fn window(&self, start: Start) -> Pair<S::F> {
        let s = self.s;
        let scale = T::round(s, s.mul(self.range, s.splat(start.step)));
        let half = s.mul(scale, s.mul(self.levels, s.splat(0.5)));
        let middle = s.add(self.middle, s.mul(self.range, s.splat(start.shift)));
        if start.down {
            let bias = T::round(s, s.add(middle, half));
            Pair { scale: s.sub(s.splat(0.0), scale), bias }
        } else {
            Pair { scale, bias: T::round(s, s.sub(middle, half)) }
        }
    }

    /// Measures a stored pair, and refits it: see the module.
    #[inline(always)]
    fn pass(&self, pair: Pair<S::F>, best: &mut Tried<S::F>) -> Tried<S::F> {
        let s = self.s;
        let Pair { scale, bias } = pair;
        let inverse = s.div(s.splat(1.0), scale);
        let sums = self.sums(bias, inverse);
        let mean_q = s.mul(sums.wq, self.share);
        let mean_t = s.mul(s.sub(self.mean, s.sub(bias, self.least)), inverse);
        let mean_d = s.sub(mean_t, mean_q);
        let spread = s.sub(sums.wqq, s.mul(mean_q, sums.wq));
        let along = s.sub(sums.wdq, s.mul(mean_d, sums.wq));
        let slope = s.div(along, spread);
        // A group with one code only has no slope.
        let slope = s.select(s.less(s.splat(0.0), spread), s.splat(0.0), slope);
        let unit = s.mul(scale, self.unit);
        let unit = s.mul(unit, unit);
        let error = s.mul(sums.wdd, unit);
        [*best, _] = sort(s, *best, Tried { error, pair });
        let gain = s.add(s.mul(s.mul(mean_d, mean_d), self.total), s.mul(slope, along));
        let refit = T::round(s, s.add(scale, s.mul(scale, slope)));
        let moved = s.add(s.mul(scale, mean_d), s.mul(s.sub(scale, refit), mean_q));
        Tried {
            error: s.mul(s.sub(sums.wdd, gain), unit),
            pair: Pair { scale: refit, bias: T::round(s, s.add(bias, moved)) },
        }
    }

    #[inline(always)]
    fn sums(&self, bias: S::F, inverse: S::F) -> Sums<S::F> {
        let s = self.s;
        let zero = s.splat(0.0);
        // (b - w) * (-1 / s) has the same bits, and lets the subtraction take its operand from memory.
        let inverse = s.sub(zero, inverse);
        let mut sums = Sums { wq: zero, wqq: zero, wdq: zero, wdd: zero };
        for (k, x) in self.values.iter().enumerate() {
            let t = s.mul(s.sub(bias, s.load(x)), inverse);
            let q = s.round_even(s.min(s.max(t, zero), self.levels));
            let d = s.sub(t, q);
            let (wq, wd) = if WEIGHTED {
                let w = s.load(&self.weights[k]);
                (s.mul(w, q), s.mul(w, d))
            } else {
                (q, d)
            };
            sums.wq = s.add(sums.wq, wq);
            sums.wqq = s.add(sums.wqq, s.mul(wq, q));
            sums.wdq = s.add(sums.wdq, s.mul(wd, q));
            sums.wdd = s.add(sums.wdd, s.mul(wd, d));
        }
        sums
    }
}
