//! The oracle: every format from its formula, one element at a time, written for reading.
//!
//! Rounding to a small float looks its neighbours up in a table of all its values; powers of two
//! are tried one after the other; codes are packed bit by bit. Nothing is shared with the kernels.

use smelt_kernels::{Float, Format, Mode, Rounding};

use crate::Parts;

/// The values of a float with `mantissa` bits and a bias, from code 0 up to `last`.
pub(crate) fn values(mantissa: i32, bias: i32, last: usize) -> Vec<f32> {
    let per_binade = 1usize << mantissa;
    let value = |code: usize| {
        let (exponent, fraction) = (code / per_binade, code % per_binade);
        let step = power(1 - bias - mantissa + (exponent as i32 - 1).max(0));
        (fraction + if exponent > 0 { per_binade } else { 0 }) as f32 * step
    };
    (0..=last).map(value).collect()
}

/// 2^n, by multiplication; 0 or infinity out of the range of f32.
pub(crate) fn power(n: i32) -> f32 {
    let factor = if n < 0 { 0.5 } else { 2.0 };
    (0..n.abs()).fold(1.0, |x, _| x * factor)
}

/// A small float by all its non-negative values.
pub(crate) struct Table(pub(crate) Vec<f32>);

impl Table {
    /// The code nearest to `a >= 0`, halves to even, saturating.
    pub(crate) fn nearest(&self, a: f32) -> u16 {
        let above = self.0.partition_point(|value| *value < a);
        if above == self.0.len() || a.is_nan() {
            return self.0.len() as u16 - 1;
        }
        if above == 0 {
            return 0;
        }
        // Half of the sum of neighbours is exact.
        let middle = self.0[above - 1] / 2.0 + self.0[above] / 2.0;
        let up = a > middle || a == middle && above.is_multiple_of(2);
        (above - usize::from(!up)) as u16
    }
}

/// The tables of all types.
pub(crate) struct Tables {
    pub(crate) e2m1: Table,
    pub(crate) e4m3: Table,
    /// One more than finite: infinity stands where 2^16 would.
    f16: Table,
}

impl Tables {
    pub(crate) fn new() -> Self {
        Self {
            e2m1: Table(values(1, 1, 7)),
            e4m3: Table(values(3, 7, 126)),
            f16: Table(values(10, 15, 0x7C00)),
        }
    }

    /// The bits of `x` rounded to `dtype`.
    pub(crate) fn bits(&self, dtype: Float, x: f32) -> u32 {
        let sign = u32::from(x.is_sign_negative());
        match dtype {
            Float::F32 => x.to_bits(),
            Float::Bf16 if x.is_nan() => 0x7FC0,
            Float::F16 if x.is_nan() => sign << 15 | 0x7D00,
            Float::F16 => sign << 15 | u32::from(self.f16.nearest(x.abs())),
            Float::Bf16 => {
                let (kept, rest) = (x.to_bits() >> 16, x.to_bits() & 0xFFFF);
                kept + u32::from(rest > 0x8000 || rest == 0x8000 && kept % 2 == 1)
            }
        }
    }

    /// The value of the bits of a `dtype`.
    pub(crate) fn value(&self, dtype: Float, bits: u32) -> f32 {
        match dtype {
            Float::F32 => f32::from_bits(bits),
            Float::Bf16 => f32::from_bits(bits << 16),
            Float::F16 => {
                let magnitude = bits & 0x7FFF;
                let value = match magnitude {
                    0..0x7C00 => self.f16.0[magnitude as usize],
                    0x7C00 => f32::INFINITY,
                    _ => f32::from_bits(0x7FC0_0000 | magnitude << 13),
                };
                f32::from_bits(value.to_bits() | bits >> 15 << 31)
            }
        }
    }

    /// `x` rounded to `dtype`.
    fn round(&self, dtype: Float, x: f32) -> f32 {
        self.value(dtype, self.bits(dtype, x))
    }
}

/// The elements of a slice of bytes.
pub(crate) fn load(tables: &Tables, dtype: Float, bytes: &[u8]) -> Vec<f32> {
    let elements = bytes.chunks_exact(dtype.size());
    let bits = elements.map(|bytes| bytes.iter().rev().fold(0, |bits, byte| bits << 8 | u32::from(*byte)));
    bits.map(|bits| tables.value(dtype, bits)).collect()
}

/// The bytes of values, rounded.
pub(crate) fn store(tables: &Tables, dtype: Float, values: &[f32]) -> Vec<u8> {
    let bytes =
        values.iter().flat_map(|x| tables.bits(dtype, *x).to_le_bytes().into_iter().take(dtype.size()));
    bytes.collect()
}

/// A stream of codes, least significant bit first.
pub(crate) fn pack(codes: &[u16], bits: u8) -> Vec<u8> {
    let mut out = vec![0; (codes.len() * usize::from(bits)).div_ceil(8)];
    for (k, code) in codes.iter().enumerate() {
        for bit in 0..usize::from(bits) {
            let at = k * usize::from(bits) + bit;
            out[at / 8] |= (((code >> bit) & 1) as u8) << (at % 8);
        }
    }
    out
}

/// The codes of a stream.
pub(crate) fn unpack(packed: &[u8], bits: u8) -> Vec<u16> {
    let bit = |at: usize| u16::from(packed[at / 8] >> (at % 8) & 1);
    let code =
        |k: usize| (0..usize::from(bits)).rev().fold(0, |code, i| code << 1 | bit(k * usize::from(bits) + i));
    (0..packed.len() * 8 / usize::from(bits)).map(code).collect()
}

/// Nearest integer.
fn round_by(rounding: Rounding, x: f32) -> f32 {
    match rounding {
        Rounding::Cpu => x.round_ties_even(),
        Rounding::Gpu => x.round(),
    }
}

/// Codes, scale and bias of a group of an affine format.
fn affine(format: Format, rounding: Rounding, group: &[f32]) -> (Vec<u16>, f32, f32) {
    let (mut lo, mut hi) = (f32::INFINITY, f32::NEG_INFINITY);
    if rounding == Rounding::Gpu {
        hi = 0.0;
    }
    for x in group.iter().filter(|x| !x.is_nan()) {
        lo = lo.min(*x);
        hi = hi.max(*x);
    }
    let levels = f32::from((1u16 << format.bits()) - 1);
    let mut scale = (hi - lo) / levels;
    if scale < 1e-7 {
        scale = 1e-7;
    }
    let mut edge = lo;
    if lo.abs() <= hi.abs() {
        scale = -scale;
        edge = hi;
    }
    let steps = round_by(rounding, edge / scale);
    let mut bias = 0.0;
    if steps != 0.0 {
        scale = edge / steps;
        bias = edge;
    }
    let code = |x: &f32| {
        let steps = round_by(rounding, (x - bias) / scale);
        if steps.is_nan() { 0 } else { steps.clamp(0.0, levels) as u16 }
    };
    (group.iter().map(code).collect(), scale, bias)
}

/// Byte and value of an E8M0 scale that is at least `ratio`, a finite number.
fn e8m0(rounding: Rounding, ratio: f32) -> (u8, f32) {
    let lowest = if rounding == Rounding::Gpu { -127 } else { -149 };
    if ratio == 0.0 && rounding == Rounding::Cpu {
        return (127, 1.0);
    }
    let exponent = (lowest..=127).find(|n| power(*n) >= ratio).expect("an f32 is below 2^128");
    ((exponent + 127) as u8, power(exponent))
}

/// Byte and value of a scale for `ratio`.
fn small_scale(tables: &Tables, mode: Mode, rounding: Rounding, ratio: f32) -> (u8, f32) {
    if mode == Mode::Nvfp4 {
        let byte = tables.e4m3.nearest(ratio);
        (byte as u8, tables.e4m3.0[usize::from(byte)])
    } else if ratio.is_finite() {
        e8m0(rounding, ratio)
    } else {
        (255, f32::INFINITY)
    }
}

/// E2M1 by a CPU: the first of all sixteen values at the least distance.
fn first_nearest(tables: &Tables, x: f32) -> u16 {
    let all = (0..16).map(|k| if k < 8 { tables.e2m1.0[k] } else { -tables.e2m1.0[k - 8] });
    let mut best = (f32::INFINITY, 0);
    for (k, value) in all.enumerate() {
        if (x - value).abs() < best.0 {
            best = ((x - value).abs(), k as u16);
        }
    }
    best.1
}

/// Codes and scale byte of a group of small floats.
fn small(tables: &Tables, format: Format, by: (Rounding, Float), group: &[f32]) -> (Vec<u16>, u8) {
    let (rounding, dtype) = by;
    let (table, sign_bit) = if format.mode() == Mode::Mxfp8 { (&tables.e4m3, 7) } else { (&tables.e2m1, 3) };
    let greatest = table.0[table.0.len() - 1];
    let magnitude = |m: f32, x: &f32| if x.is_nan() || *x > m { *x } else { m };
    let ratio =
        group.iter().map(|x| x.abs()).fold(0.0, |m: f32, x| if m.is_nan() { m } else { magnitude(m, &x) })
            / greatest;
    let ratio = if rounding == Rounding::Cpu { tables.round(dtype, ratio) } else { ratio };
    let (byte, scale) = small_scale(tables, format.mode(), rounding, ratio);
    let code = |x: &f32| {
        let sign = u16::from(x.is_sign_negative()) << sign_bit;
        match rounding {
            Rounding::Gpu => {
                let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
                table.nearest((x * inverse).abs()) | sign
            }
            Rounding::Cpu if sign_bit == 7 => table.nearest(tables.round(dtype, x / scale).abs()) | sign,
            Rounding::Cpu => first_nearest(tables, tables.round(dtype, x / scale)),
        }
    };
    (group.iter().map(code).collect(), byte)
}

/// Quantizes a block.
pub(crate) fn quantize(
    tables: &Tables,
    format: Format,
    rounding: Rounding,
    dtype: Float,
    input: &[u8],
) -> Parts {
    let mut parts = Parts { codes: Vec::new(), scales: Vec::new(), biases: Vec::new() };
    for group in load(tables, dtype, input).chunks_exact(format.group_size()) {
        let codes;
        if format.mode() == Mode::Affine {
            let (scale, bias);
            (codes, scale, bias) = affine(format, rounding, group);
            let scale_bytes = match dtype {
                Float::F16 if scale.is_nan() => vec![0x00, 0xFD],
                Float::F32 if scale.is_nan() => vec![0x00, 0x00, 0xC0, 0x7F],
                _ => store(tables, dtype, &[scale]),
            };
            parts.scales.extend(scale_bytes);
            parts.biases.extend(store(tables, dtype, &[bias]));
        } else {
            let byte;
            (codes, byte) = small(tables, format, (rounding, dtype), group);
            parts.scales.push(byte);
        }
        parts.codes.extend(pack(&codes, format.bits()));
    }
    parts
}

/// The value of a code of a small float with its sign.
fn small_value(tables: &Tables, mode: Mode, code: u16) -> f32 {
    let (table, sign_bit) = if mode == Mode::Mxfp8 { (&tables.e4m3, 7) } else { (&tables.e2m1, 3) };
    let value = table.0.get(usize::from(code & ((1 << sign_bit) - 1))).copied().unwrap_or(f32::NAN);
    if code >> sign_bit == 1 { -value } else { value }
}

/// What each code stands for, with its scale and bias, in double.
pub(crate) fn numbers(tables: &Tables, format: Format, dtype: Float, parts: &Parts) -> Vec<(f64, f64, f64)> {
    let (scales, biases) = pairs(tables, format, dtype, parts);
    let codes = unpack(&parts.codes, format.bits()).into_iter().enumerate();
    let number = |(k, code)| {
        let group = k / format.group_size();
        let level = if format.mode() == Mode::Affine {
            f32::from(code)
        } else {
            small_value(tables, format.mode(), code)
        };
        let bias = biases.get(group).copied().unwrap_or(0.0);
        (f64::from(level), f64::from(scales[group]), f64::from(bias))
    };
    codes.map(number).collect()
}

/// Scales and biases.
fn pairs(tables: &Tables, format: Format, dtype: Float, parts: &Parts) -> (Vec<f32>, Vec<f32>) {
    let scales = match format.mode() {
        Mode::Affine => load(tables, dtype, &parts.scales),
        Mode::Nvfp4 => {
            parts.scales.iter().map(|byte| small_value(tables, Mode::Mxfp8, u16::from(*byte))).collect()
        }
        _ => parts.scales.iter().map(|byte| power(i32::from(*byte) - 127)).collect(),
    };
    (scales, load(tables, dtype, &parts.biases))
}

/// Decodes a block.
pub(crate) fn dequantize(tables: &Tables, format: Format, dtype: Float, parts: &Parts) -> Vec<u8> {
    let (scales, biases) = pairs(tables, format, dtype, parts);
    let codes = unpack(&parts.codes, format.bits());
    let value = |(k, code): (usize, &u16)| {
        let group = k / format.group_size();
        let value = if format.mode() == Mode::Affine {
            tables.round(dtype, f32::from(*code) * scales[group]) + biases[group]
        } else {
            small_value(tables, format.mode(), *code) * tables.round(dtype, scales[group])
        };
        if value.is_nan() { f32::from_bits(0x7FC0_0000) } else { value }
    };
    let values: Vec<f32> = codes.iter().enumerate().map(value).collect();
    store(tables, dtype, &values)
}
