//! Throughput of every format and instruction set, in bytes of dense data a second.
//!
//! A block of 1 MiB stays in the second-level cache, so this measures the kernels, not the memory.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use smelt_kernels::{Effort, Float, Format, Isa, Mode, Packed, Rounding, Stored, transpose};

/// Bytes of a block.
const BLOCK: usize = 1 << 20;

/// Weights of a plausible size, from a small generator.
fn weights(dtype: Float) -> Vec<u8> {
    let mut state = 1u64;
    let uniform = (0..BLOCK / dtype.size()).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.1
    });
    let dense: Vec<u8> = uniform.flat_map(f32::to_le_bytes).collect();
    let mut out = vec![0; BLOCK];
    Isa::Scalar.convert(Float::F32, dtype, &dense, &mut out);
    out
}

/// The formats to measure: all widths at one group size, and the small floats.
fn formats() -> Vec<Format> {
    let affine = [2, 3, 4, 5, 6, 8].map(|bits| Format::new(Mode::Affine, bits, 64));
    let small = [Mode::Mxfp4, Mode::Mxfp8, Mode::Nvfp4].map(|mode| {
        let (bits, size) = mode.defaults();
        Format::new(mode, bits, size)
    });
    affine.into_iter().chain(small).flatten().collect()
}

fn quantize(c: &mut Criterion) {
    for dtype in [Float::Bf16, Float::F16, Float::F32] {
        let input = weights(dtype);
        for rounding in [Rounding::Gpu, Rounding::Cpu] {
            let mut group = c.benchmark_group(format!("quantize/{dtype:?}/{rounding:?}"));
            group.throughput(Throughput::Bytes(BLOCK as u64));
            for format in formats() {
                let groups = BLOCK / dtype.size() / format.group_size();
                let mut codes = vec![0; groups * format.code_bytes()];
                let mut scales = vec![0; groups * format.scale_bytes(dtype)];
                let mut biases = vec![0; if format.has_biases() { scales.len() } else { 0 }];
                for isa in Isa::available() {
                    group.bench_function(format!("{format}/{isa}"), |b| {
                        b.iter(|| {
                            let (codes, scales) = (&mut codes, &mut scales);
                            let out = Packed { codes, scales, biases: &mut biases };
                            isa.quantize(format, rounding, dtype, black_box(&input), out);
                        });
                    });
                }
            }
        }
    }
}

/// Every effort without an importance, and the default one with it.
fn search(c: &mut Criterion) {
    let dtype = Float::Bf16;
    let input = weights(dtype);
    let row = vec![1.5; 1024];
    let mut group = c.benchmark_group("search/Bf16");
    group.throughput(Throughput::Bytes(BLOCK as u64));
    let plain = Effort::ALL.map(|effort| (effort, None));
    for format in formats() {
        let groups = BLOCK / dtype.size() / format.group_size();
        let mut codes = vec![0; groups * format.code_bytes()];
        let mut scales = vec![0; groups * format.scale_bytes(dtype)];
        let mut biases = vec![0; if format.has_biases() { scales.len() } else { 0 }];
        for (effort, importance) in plain.into_iter().chain([(Effort::Default, Some(row.as_slice()))]) {
            let weighted = if importance.is_some() { "+importance" } else { "" };
            for isa in Isa::available() {
                group.bench_function(format!("{format}/{effort}{weighted}/{isa}"), |b| {
                    b.iter(|| {
                        let (codes, scales) = (&mut codes, &mut scales);
                        let out = Packed { codes, scales, biases: &mut biases };
                        let input = black_box(&input);
                        isa.search(format, effort, Rounding::Gpu, dtype, input, importance, out);
                    });
                });
            }
        }
    }
    let format = formats()[2];
    let groups = BLOCK / dtype.size() / format.group_size();
    let codes = vec![0x35; groups * format.code_bytes()];
    let scales = vec![0x3D; groups * format.scale_bytes(dtype)];
    let stored = Stored { codes: &codes, scales: &scales, biases: &scales };
    for isa in Isa::available() {
        group.bench_function(format!("distortion/{isa}"), |b| {
            b.iter(|| isa.distortion(format, dtype, black_box(&input), None, stored));
        });
    }
}

fn dequantize(c: &mut Criterion) {
    let dtype = Float::Bf16;
    let mut group = c.benchmark_group("dequantize/Bf16");
    group.throughput(Throughput::Bytes(BLOCK as u64));
    let mut out = vec![0; BLOCK];
    for format in formats() {
        let groups = BLOCK / dtype.size() / format.group_size();
        // Neither zero nor special in any type of scale.
        let codes = vec![0x35; groups * format.code_bytes()];
        let scales = vec![0x3D; groups * format.scale_bytes(dtype)];
        let biases = if format.has_biases() { scales.clone() } else { Vec::new() };
        for isa in Isa::available() {
            group.bench_function(format!("{format}/{isa}"), |b| {
                b.iter(|| {
                    isa.dequantize(format, dtype, black_box(&codes), &scales, &biases, &mut out);
                });
            });
        }
    }
}

fn elements(c: &mut Criterion) {
    let mut group = c.benchmark_group("elements");
    group.throughput(Throughput::Bytes(BLOCK as u64));
    let pairs = [
        (Float::Bf16, Float::F16),
        (Float::F16, Float::Bf16),
        (Float::F32, Float::Bf16),
        (Float::Bf16, Float::F32),
    ];
    for isa in Isa::available() {
        for dtype in [Float::Bf16, Float::F16, Float::F32] {
            let input = weights(dtype);
            group.bench_function(format!("all_finite/{dtype:?}/{isa}"), |b| {
                b.iter(|| isa.all_finite(dtype, black_box(&input)));
            });
        }
        for (from, to) in pairs {
            let input = weights(from);
            let mut out = vec![0; BLOCK / from.size() * to.size()];
            group.bench_function(format!("convert/{from:?}-{to:?}/{isa}"), |b| {
                b.iter(|| isa.convert(from, to, black_box(&input), &mut out));
            });
        }
    }
    for size in [1, 2, 4, 8] {
        let (input, mut out) = (vec![1; BLOCK], vec![0; BLOCK]);
        group.bench_function(format!("transpose/{size}"), |b| {
            b.iter(|| transpose(black_box(&input), 512, BLOCK / 512 / size, size, &mut out));
        });
    }
}

fn settings() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500))
        .sample_size(20)
}

criterion_group! {
    name = kernels;
    config = settings();
    targets = quantize, search, dequantize, elements
}
criterion_main!(kernels);
