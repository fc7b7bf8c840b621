//! Multiple-choice knapsack: one option of each item, the least loss within a budget of bytes.
//!
//! 1. Of each item only options on the lower convex hull of (bytes, loss) can be best for a price
//!    `λ` of a byte. Taking the hulls' steps in the order of their gain per byte gives, for every budget
//!    at once, the optimum of the relaxed problem, its price and a lower bound of the loss: the frontier.
//! 2. At the budget the steps that still fit are taken, then any option that fits and gains.
//! 3. With the reduced cost `c = loss + λ bytes - min(loss + λ bytes)` of an option, no solution better
//!    than the one at hand takes an option whose `c` is above the gap to the bound. What is left, items
//!    that are nearest to a change first, is searched exactly by lists of undominated partial choices.
//!
//! The third step is exact while [`CORE`] items and [`STATES`] partial choices suffice; beyond, the
//! result is what remains of the best, and the gap to the bound says how far it can be off.

/// Items that the exact step looks at.
const CORE: usize = 160;

/// Partial choices that it keeps.
const STATES: usize = 6000;

/// A way to store an item.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Choice {
    /// Its size.
    pub(super) bytes: u64,
    /// What it costs in quality.
    pub(super) loss: f64,
}

/// A choice for each item.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Solution {
    /// The index of each item's option.
    pub(super) picks: Vec<usize>,
    /// Bytes of all.
    pub(super) bytes: u64,
    /// Loss of all.
    pub(super) loss: f64,
    /// No choice within the budget has less loss than this.
    pub(super) bound: f64,
}

/// A point of the frontier.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    /// Bytes of all items.
    pub(super) bytes: u64,
    /// Their loss.
    pub(super) loss: f64,
}

/// One step along an item's hull.
#[derive(Clone, Copy, Debug)]
struct Step {
    item: usize,
    /// The option that it leads to.
    to: usize,
    bytes: u64,
    gain: f64,
}

impl Step {
    fn rate(&self) -> f64 {
        self.gain / self.bytes as f64
    }
}

/// Items with their hulls, ready for any budget.
#[derive(Debug)]
pub(super) struct Knapsack<'a> {
    items: &'a [Vec<Choice>],
    /// The cheapest option of each item.
    base: Vec<usize>,
    /// All steps, the best gain per byte first.
    steps: Vec<Step>,
}

impl<'a> Knapsack<'a> {
    /// Of items with at least one option each.
    ///
    /// # Panics
    /// If an item has no option.
    pub(super) fn new(items: &'a [Vec<Choice>]) -> Self {
        let hulls: Vec<Vec<usize>> = items.iter().map(|options| hull(options)).collect();
        let mut steps: Vec<Step> = Vec::new();
        for (item, hull) in hulls.iter().enumerate() {
            for pair in hull.windows(2) {
                let (from, to) = (items[item][pair[0]], items[item][pair[1]]);
                steps.push(Step {
                    item,
                    to: pair[1],
                    bytes: to.bytes - from.bytes,
                    gain: from.loss - to.loss,
                });
            }
        }
        // Stable: of equal rates the earlier item comes first, and of one item the earlier step.
        steps.sort_by(|a, b| b.rate().total_cmp(&a.rate()));
        Self { items, base: hulls.iter().map(|hull| hull[0]).collect(), steps }
    }

    /// The whole frontier: what each number of steps takes and loses.
    pub(super) fn frontier(&self) -> Vec<Point> {
        let mut point = self.total(&self.base);
        let mut points = vec![point];
        for step in &self.steps {
            point = Point { bytes: point.bytes + step.bytes, loss: point.loss - step.gain };
            points.push(point);
        }
        points
    }

    /// The least loss within a budget; `None` if even the cheapest options take more.
    pub(super) fn solve(&self, budget: u64) -> Option<Solution> {
        let start = self.total(&self.base);
        if start.bytes > budget {
            return None;
        }
        let (mut picks, bound, price) = self.relaxed(start, budget);
        self.fill(&mut picks, budget);
        if price > 0.0 {
            self.improve(&mut picks, budget, bound, price);
            self.fill(&mut picks, budget);
        }
        let Point { bytes, loss } = self.total(&picks);
        Some(Solution { picks, bytes, loss, bound: bound.min(loss) })
    }

    fn total(&self, picks: &[usize]) -> Point {
        let chosen = self.items.iter().zip(picks).map(|(options, &pick)| options[pick]);
        chosen.fold(Point { bytes: 0, loss: 0.0 }, |sum, choice| Point {
            bytes: sum.bytes + choice.bytes,
            loss: sum.loss + choice.loss,
        })
    }

    /// The steps that fit, the bound of the relaxed problem, and the price of a byte at the budget: 0
    /// where all steps fit.
    fn relaxed(&self, start: Point, budget: u64) -> (Vec<usize>, f64, f64) {
        let (mut picks, mut left) = (self.base.clone(), budget - start.bytes);
        let mut reached: Option<(f64, f64)> = None;
        let mut stuck = vec![false; self.items.len()];
        let mut loss = start.loss;
        for step in &self.steps {
            if step.bytes > left && reached.is_none() {
                reached = Some((loss - step.rate() * left as f64, step.rate()));
            }
            if step.bytes > left || stuck[step.item] {
                // Later steps of the item begin where this one ends.
                stuck[step.item] = true;
                continue;
            }
            picks[step.item] = step.to;
            left -= step.bytes;
            loss -= step.gain;
        }
        let (bound, price) = reached.unwrap_or((loss, 0.0));
        (picks, bound, price)
    }

    /// Takes whatever fits and gains, the best gain per byte first.
    fn fill(&self, picks: &mut [usize], budget: u64) {
        let mut left = budget - self.total(picks).bytes;
        loop {
            let mut best: Option<(f64, usize, usize)> = None;
            for (item, options) in self.items.iter().enumerate() {
                let now = options[picks[item]];
                for (index, option) in options.iter().enumerate() {
                    let gain = now.loss - option.loss;
                    if gain <= 0.0 || option.bytes > now.bytes + left {
                        continue;
                    }
                    // Smaller and better at once comes first of all.
                    let rate = gain / option.bytes.saturating_sub(now.bytes).max(1) as f64;
                    if best.is_none_or(|(found, ..)| rate > found) {
                        best = Some((rate, item, index));
                    }
                }
            }
            let Some((_, item, index)) = best else { return };
            left = left + self.items[item][picks[item]].bytes - self.items[item][index].bytes;
            picks[item] = index;
        }
    }

    /// Searches the options that a better solution could take.
    fn improve(&self, picks: &mut [usize], budget: u64, bound: f64, price: f64) {
        let now = self.total(picks).loss;
        // A little more, so that rounding does not part options of equal cost.
        let gap = now - bound + 1e-9 * now.abs();
        let reduced: Vec<Vec<f64>> = self.items.iter().map(|options| reduced_costs(options, price)).collect();
        let mut core: Vec<(f64, usize)> = Vec::new();
        let mut fixed = picks.to_vec();
        for (item, costs) in reduced.iter().enumerate() {
            let (first, second) = two_least(costs);
            fixed[item] = first;
            if second <= gap {
                core.push((second, item));
            }
        }
        core.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        core.truncate(CORE);
        let items: Vec<usize> = core.into_iter().map(|(_, item)| item).collect();
        let search = Core { knapsack: self, reduced: &reduced, items: &items, price, gap };
        let Some(found) = search.run(&fixed, budget) else { return };
        if self.total(&found).loss < now {
            picks.copy_from_slice(&found);
        }
    }
}

/// Indices of the options on the lower convex hull, the fewest bytes first.
fn hull(options: &[Choice]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..options.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (options[a], options[b]);
        a.bytes.cmp(&b.bytes).then(a.loss.total_cmp(&b.loss))
    });
    let rate = |from: usize, to: usize| {
        (options[from].loss - options[to].loss) / (options[to].bytes - options[from].bytes) as f64
    };
    let mut hull: Vec<usize> = Vec::new();
    for next in order {
        if hull.last().is_some_and(|&last| options[next].loss >= options[last].loss) {
            continue;
        }
        while let [.., before, last] = hull[..]
            && rate(before, last) <= rate(last, next)
        {
            hull.pop();
        }
        hull.push(next);
    }
    assert!(!hull.is_empty(), "an item has an option");
    hull
}

/// What each option costs above the item's best at a price.
fn reduced_costs(options: &[Choice], price: f64) -> Vec<f64> {
    let costs: Vec<f64> = options.iter().map(|choice| choice.loss + price * choice.bytes as f64).collect();
    let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
    costs.into_iter().map(|cost| cost - least).collect()
}

/// Where the least is, and the second least.
fn two_least(costs: &[f64]) -> (usize, f64) {
    let mut order: Vec<usize> = (0..costs.len()).collect();
    order.sort_by(|&a, &b| costs[a].total_cmp(&costs[b]).then(a.cmp(&b)));
    (order[0], order.get(1).map_or(f64::INFINITY, |&second| costs[second]))
}

/// The exact step over a few items.
struct Core<'a> {
    knapsack: &'a Knapsack<'a>,
    reduced: &'a [Vec<f64>],
    items: &'a [usize],
    price: f64,
    gap: f64,
}

/// A choice for the first items of a core.
#[derive(Clone, Copy)]
struct State {
    bytes: u64,
    /// Sum of reduced costs.
    excess: f64,
    /// The state that it extends, and the option of the last item.
    from: u32,
    pick: u8,
}

impl Core<'_> {
    /// The best picks with all items outside the core as in `fixed`.
    fn run(&self, fixed: &[usize], budget: u64) -> Option<Vec<usize>> {
        let options = |item: usize| &self.knapsack.items[item];
        let core: u64 = self.items.iter().map(|&item| options(item)[fixed[item]].bytes).sum();
        let outside = self.knapsack.total(fixed).bytes - core;
        if outside > budget {
            return None;
        }
        let mut rest: u64 =
            self.items.iter().map(|&item| options(item).iter().map(|o| o.bytes).min().unwrap_or(0)).sum();
        let mut levels = vec![vec![State { bytes: outside, excess: 0.0, from: 0, pick: 0 }]];
        for &item in self.items {
            rest -= options(item).iter().map(|o| o.bytes).min().unwrap_or(0);
            let last = levels.last().expect("there is a first level");
            levels.push(self.extended(last, item, budget.checked_sub(rest)?));
        }
        let last = levels.last().expect("there is a first level");
        let cost = |state: &State| state.excess + self.price * (budget - state.bytes) as f64;
        let best = (0..last.len()).min_by(|&a, &b| cost(&last[a]).total_cmp(&cost(&last[b])))?;
        Some(self.traced(&levels, best, fixed))
    }

    /// Every state of a level with every option of an item that can lead to a better solution.
    fn extended(&self, last: &[State], item: usize, most: u64) -> Vec<State> {
        let mut found = Vec::new();
        for (pick, choice) in self.knapsack.items[item].iter().enumerate() {
            let cost = self.reduced[item][pick];
            for (from, state) in last.iter().enumerate() {
                let (bytes, excess) = (state.bytes + choice.bytes, state.excess + cost);
                if bytes <= most && excess <= self.gap {
                    found.push(State { bytes, excess, from: from as u32, pick: pick as u8 });
                }
            }
        }
        self.undominated(found)
    }

    /// Without the states than which another takes no more bytes and loses no more.
    fn undominated(&self, mut states: Vec<State>) -> Vec<State> {
        let loss = |state: &State| state.excess - self.price * state.bytes as f64;
        states.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.excess.total_cmp(&b.excess)));
        let mut best = f64::INFINITY;
        states.retain(|state| {
            let better = loss(state) < best;
            best = best.min(loss(state));
            better
        });
        if states.len() > STATES {
            states.sort_by(|a, b| a.excess.total_cmp(&b.excess).then(a.bytes.cmp(&b.bytes)));
            states.truncate(STATES);
        }
        states
    }

    fn traced(&self, levels: &[Vec<State>], last: usize, fixed: &[usize]) -> Vec<usize> {
        let (mut picks, mut at) = (fixed.to_vec(), last);
        for (level, &item) in levels[1..].iter().zip(self.items).rev() {
            picks[item] = level[at].pick as usize;
            at = level[at].from as usize;
        }
        picks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn items(most: usize) -> impl Strategy<Value = Vec<Vec<Choice>>> {
        let choice = (1..60u64, 0..1000u32).prop_map(|(bytes, loss)| Choice { bytes, loss: f64::from(loss) });
        prop::collection::vec(prop::collection::vec(choice, 1..5), 1..most)
    }

    /// The least loss within a budget by trying everything.
    fn brute(items: &[Vec<Choice>], budget: u64) -> Option<f64> {
        let Some((options, rest)) = items.split_first() else { return Some(0.0) };
        let tried = options.iter().filter(|choice| choice.bytes <= budget);
        let all = tried.filter_map(|choice| Some(choice.loss + brute(rest, budget - choice.bytes)?));
        all.min_by(f64::total_cmp)
    }

    proptest! {
        #[test]
        fn a_few_items_are_solved_exactly(items in items(7), budget in 0..360u64) {
            let knapsack = Knapsack::new(&items);
            let solution = knapsack.solve(budget);
            prop_assert_eq!(solution.as_ref().map(|s| s.loss), brute(&items, budget));
            if let Some(solution) = solution {
                prop_assert!(solution.bytes <= budget);
                prop_assert!(solution.bound <= solution.loss + 1e-9);
                let sum = solution.picks.iter().zip(&items).map(|(&pick, options)| options[pick].bytes).sum::<u64>();
                prop_assert_eq!(sum, solution.bytes);
            }
        }

        #[test]
        fn the_frontier_falls_ever_more_slowly(items in items(12)) {
            let knapsack = Knapsack::new(&items);
            let points = knapsack.frontier();
            prop_assert!(knapsack.solve(points[0].bytes).is_some() && points[0].bytes.checked_sub(1).and_then(|less| knapsack.solve(less)).is_none());
            let slopes: Vec<f64> = points.windows(2)
                .map(|pair| (pair[0].loss - pair[1].loss) / (pair[1].bytes - pair[0].bytes) as f64)
                .collect();
            prop_assert!(slopes.iter().all(|slope| *slope > 0.0));
            prop_assert!(slopes.windows(2).all(|pair| pair[0] >= pair[1] * (1.0 - 1e-9)));
            // What a frontier's point takes is what its budget allows.
            for point in &points {
                let solved = knapsack.solve(point.bytes).unwrap();
                prop_assert!(solved.loss <= point.loss + 1e-6);
            }
        }
    }

    /// Errors that fall by four a bit, modules of a few sizes: what a model looks like.
    fn model(modules: usize) -> Vec<Vec<Choice>> {
        let widths = [(2.25, 0.11), (2.5, 0.1), (3.25, 0.031), (3.5, 0.027), (4.25, 0.0081), (4.5, 0.0066)];
        let more = [
            (5.25, 0.0021),
            (5.5, 0.0016),
            (6.25, 0.0005),
            (6.5, 0.0004),
            (8.25, 0.000_032),
            (8.5, 0.000_026),
        ];
        let module = |index: usize| {
            let elements = [1u64 << 20, 3 << 20, 11 << 20, 176 << 20][index % 4];
            let weight = 0.5 + (index * 7919 % 101) as f64 / 40.0;
            let option = |(bits, error): (f64, f64)| Choice {
                bytes: (elements as f64 * bits / 8.0) as u64,
                loss: weight * error,
            };
            widths.into_iter().chain(more).map(option).collect()
        };
        (0..modules).map(module).collect()
    }

    #[test]
    fn two_thousand_modules_take_little_time_and_fill_the_budget() {
        let items = model(2000);
        let knapsack = Knapsack::new(&items);
        let most: u64 = items.iter().map(|options| options.last().unwrap().bytes).sum();
        for share in [0.3, 0.45, 0.6, 0.9] {
            let budget = (most as f64 * share) as u64;
            let started = std::time::Instant::now();
            let solution = knapsack.solve(budget).unwrap();
            // A debug build is several times slower than what users run.
            assert!(started.elapsed().as_secs_f64() < 5.0, "{:?}", started.elapsed());
            assert!(solution.bytes <= budget && solution.bytes as f64 > budget as f64 * 0.999);
            assert!(solution.loss <= solution.bound * 1.001, "{} above {}", solution.loss, solution.bound);
        }
    }
}
