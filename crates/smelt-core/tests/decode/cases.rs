//! Checkpoints with a weight in one format each, and what each element of it stands for.

use proptest::prelude::*;
use serde_json::{Value, json};
use smelt_core::checkpoint::DType;

use crate::{Tensor, tensor};

/// A weight in one format.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// A part of the format's name in words.
    pub(crate) words: String,
    pub(crate) config: Value,
    pub(crate) tensors: Vec<Tensor>,
    /// Of these, those that say nothing of a weight.
    pub(crate) unused: usize,
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<u64>,
    /// What each element stands for, before it is rounded.
    pub(crate) values: Vec<f32>,
}

/// A small source of numbers.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn bytes(&mut self, count: u64, fits: impl Fn(u8) -> bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < count as usize {
            let byte = self.next() as u8;
            if fits(byte) {
                bytes.push(byte);
            }
        }
        bytes
    }

    /// Scales around 2^-6, not all powers of two.
    fn scales(&mut self, count: u64) -> Vec<f32> {
        (0..count).map(|_| (1.0 + (self.next() % 1000) as f32 / 1000.0) / 64.0).collect()
    }
}

pub(crate) fn e4m3(byte: u8) -> f32 {
    let (sign, exponent, mantissa) = (byte >> 7, i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let size = if exponent == 0 {
        mantissa / 8.0 * 2f32.powi(-6)
    } else {
        (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7)
    };
    if sign == 1 { -size } else { size }
}

fn e5m2(byte: u8) -> f32 {
    half::f16::from_bits(u16::from(byte) << 8).to_f32()
}

pub(crate) fn e2m1(code: u8) -> f32 {
    let size = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(code & 7)];
    if code & 8 == 8 { -size } else { size }
}

fn power(byte: u8) -> f32 {
    2f32.powi(i32::from(byte) - 127)
}

fn floats(dtype: &str, values: &[f32]) -> Vec<u8> {
    let bytes = |value: &f32| match dtype {
        "F32" => value.to_le_bytes().to_vec(),
        "F16" => half::f16::from_f32(*value).to_le_bytes().to_vec(),
        _ => half::bf16::from_f32(*value).to_le_bytes().to_vec(),
    };
    values.iter().flat_map(bytes).collect()
}

/// The values as they are once stored in a dtype.
fn stored(dtype: &str, values: &[f32]) -> Vec<f32> {
    let back = |value: &f32| match dtype {
        "F32" => *value,
        "F16" => half::f16::from_f32(*value).to_f32(),
        _ => half::bf16::from_f32(*value).to_f32(),
    };
    values.iter().map(back).collect()
}

/// For each element of `lead` matrices: `make(matrix, row, column)`.
fn each(lead: u64, rows: u64, cols: u64, make: impl Fn(u64, u64, u64) -> f32) -> Vec<f32> {
    let mut values = Vec::new();
    for index in 0..lead * rows * cols {
        values.push(make(index / cols / rows, index / cols % rows, index % cols));
    }
    values
}

fn shape(lead: u64, rest: &[u64]) -> Vec<u64> {
    if lead == 1 { rest.to_vec() } else { [&[lead], rest].concat() }
}

/// From this choice on, zero points and second scales are powers of two.
const EXACT: u64 = 32;

const NAME: &str = "a.proj.weight";

/// Sizes and choices of a case.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draw {
    pub(crate) lead: u64,
    pub(crate) rows: u64,
    pub(crate) cols: u64,
    pub(crate) pick: u64,
    pub(crate) seed: u64,
}

/// E4M3 and E5M2 with blocks of a declared size.
fn fp8_blocks(draw: Draw) -> Case {
    let Draw { lead, rows, cols, pick, seed } = draw;
    let mut dice = Dice(seed);
    let (high, wide) = [(128, 128), (4, 8), (1, 16), (3, 5)][pick as usize % 4];
    let wider = pick % 7 == 6;
    let codes =
        dice.bytes(lead * rows * cols, |byte| if wider { byte & 0x7F < 0x7C } else { byte & 0x7F != 0x7F });
    let grid = (rows.div_ceil(high), cols.div_ceil(wide));
    let dtype = ["F32", "BF16", "F8_E8M0", "U8"][pick as usize % 4];
    let count = lead * grid.0 * grid.1;
    let (bytes, scales) = if pick % 4 < 2 {
        let scales = dice.scales(count);
        (floats(dtype, &scales), stored(dtype, &scales))
    } else {
        let bytes: Vec<u8> = (0..count).map(|_| 110 + (dice.next() % 20) as u8).collect();
        let scales = bytes.iter().map(|&byte| power(byte)).collect();
        (bytes, scales)
    };
    let values = each(lead, rows, cols, |matrix, row, col| {
        let code = codes[((matrix * rows + row) * cols + col) as usize];
        let code = if wider { e5m2(code) } else { e4m3(code) };
        code * scales[((matrix * grid.0 + row / high) * grid.1 + col / wide) as usize]
    });
    // Fused experts have no `.weight`.
    let name = if lead > 1 { "a.experts.gate_up_proj" } else { NAME };
    let ending = if pick % 2 == 0 { "_scale_inv" } else { "_scale" };
    let codes = tensor(name, if wider { "F8_E5M2" } else { "F8_E4M3" }, &shape(lead, &[rows, cols]), codes);
    let scales = tensor(&format!("{name}{ending}"), dtype, &shape(lead, &[grid.0, grid.1]), bytes);
    Case {
        words: "FP8 E".to_owned(),
        config: json!({ "quantization_config": { "quant_method": "fp8", "weight_block_size": [high, wide] } }),
        tensors: vec![codes, scales],
        unused: 0,
        name: name.to_owned(),
        dtype: DType::BF16,
        shape: shape(lead, &[rows, cols]),
        values,
    }
}

/// E4M3 with a scale for all, or one a row, and a scale for activations.
fn fp8_wholes(draw: Draw) -> Case {
    let Draw { rows, cols, pick, seed, .. } = draw;
    let mut dice = Dice(seed);
    let codes = dice.bytes(rows * cols, |byte| byte & 0x7F != 0x7F);
    let dtype = ["F32", "BF16", "F16"][pick as usize % 3];
    let (shape, each_row) = match pick % 4 {
        0 => (vec![], false),
        1 => (vec![1], false),
        2 => (vec![rows], true),
        _ => (vec![rows, 1], true),
    };
    let scales = dice.scales(if each_row { rows } else { 1 });
    let kept = stored(dtype, &scales);
    let values = each(1, rows, cols, |_, row, col| {
        e4m3(codes[(row * cols + col) as usize]) * kept[if each_row { row as usize } else { 0 }]
    });
    let ending = if pick % 2 == 0 { "_scale" } else { "_scale_inv" };
    Case {
        words: "FP8 E4M3 with a scale".to_owned(),
        config: json!({ "quantization_config": { "quant_method": "fp8", "weight_block_size": null } }),
        tensors: vec![
            tensor(NAME, "F8_E4M3", &[rows, cols], codes),
            tensor(&format!("{NAME}{ending}"), dtype, &shape, floats(dtype, &scales)),
            tensor("a.proj.input_scale", "F32", &[], floats("F32", &[1.0])),
        ],
        unused: 1,
        name: NAME.to_owned(),
        dtype: DType::BF16,
        shape: vec![rows, cols],
        values,
    }
}

/// Two codes a byte, the first in the low half.
fn nibbles(codes: &[u8]) -> Vec<u8> {
    codes.chunks(2).map(|pair| pair[0] | pair[1] << 4).collect()
}

/// FP4 with a power of two for 32: gpt-oss, compressed-tensors, DeepSeek-V4 and `ModelOpt`.
pub(crate) fn mxfp4(draw: Draw) -> Case {
    let Draw { lead, rows, cols, pick, seed } = draw;
    let mut dice = Dice(seed);
    let cols = cols.next_multiple_of(32);
    let codes: Vec<u8> = (0..lead * rows * cols).map(|_| (dice.next() % 16) as u8).collect();
    let scales: Vec<u8> = (0..lead * rows * cols / 32).map(|_| 115 + (dice.next() % 20) as u8).collect();
    let value = |matrix: u64, row: u64, col: u64| {
        let at = (matrix * rows + row) * cols + col;
        e2m1(codes[at as usize]) * power(scales[at as usize / 32])
    };
    let straight = each(lead, rows, cols, value);
    let turned = each(lead, cols, rows, |matrix, row, col| value(matrix, col, row));
    let packed = nibbles(&codes);
    let (name, tensors, shape, values) = match pick % 4 {
        0 => {
            let blocks = tensor("e.down_proj_blocks", "U8", &[lead, rows, cols / 32, 16], packed);
            let scales = tensor("e.down_proj_scales", "U8", &[lead, rows, cols / 32], scales);
            ("e.down_proj", vec![blocks, scales], vec![lead, cols, rows], turned)
        }
        1 => {
            let codes = tensor("a.proj.weight_packed", "U8", &shape(lead, &[rows, cols / 2]), packed);
            let scales = tensor("a.proj.weight_scale", "U8", &shape(lead, &[rows, cols / 32]), scales);
            (NAME, vec![codes, scales], shape(lead, &[rows, cols]), straight)
        }
        2 => {
            let codes = tensor(NAME, "I8", &shape(lead, &[rows, cols / 2]), packed);
            let scales = tensor("a.proj.scale", "F8_E8M0", &shape(lead, &[rows, cols / 32]), scales);
            (NAME, vec![codes, scales], shape(lead, &[rows, cols]), straight)
        }
        _ => {
            let codes = tensor(NAME, "U8", &shape(lead, &[rows, cols / 2]), packed);
            let scales = tensor("a.proj.weight_scale", "U8", &shape(lead, &[rows, cols / 32]), scales);
            (NAME, vec![codes, scales], shape(lead, &[rows, cols]), straight)
        }
    };
    // The block size is that of other weights beside these.
    let config = json!({ "quantization_config": { "quant_method": "fp8", "weight_block_size": [128, 128] } });
    Case {
        words: "FP4 E2M1".to_owned(),
        config,
        tensors,
        unused: 0,
        name: name.to_owned(),
        dtype: DType::BF16,
        shape,
        values,
    }
}

/// NVFP4 with a factor (`ModelOpt`) or a divisor (compressed-tensors).
pub(crate) fn nvfp4(draw: Draw) -> Case {
    let Draw { rows, cols, pick, seed, .. } = draw;
    let mut dice = Dice(seed);
    let cols = cols.next_multiple_of(16);
    let codes: Vec<u8> = (0..rows * cols).map(|_| (dice.next() % 16) as u8).collect();
    // From 32 on the second scale is an eighth, and all scales are far from the ends of their range.
    let exact = pick >= EXACT;
    let scales = dice.bytes(rows * cols / 16, |byte| byte < 0x7F && (!exact || (0x30..0x50).contains(&byte)));
    let divides = pick % 2 == 1;
    let global = match (exact, divides) {
        (true, true) => 8.0,
        (true, false) => 0.125,
        (false, true) => 1000.0 + (dice.next() % 999) as f32,
        (false, false) => dice.scales(1)[0],
    };
    let values = each(1, rows, cols, |_, row, col| {
        let at = (row * cols + col) as usize;
        let scale = e4m3(scales[at / 16]);
        e2m1(codes[at]) * if divides { scale / global } else { scale * global }
    });
    let ending = if divides { "weight_packed" } else { "weight" };
    let second = if divides { "weight_global_scale" } else { "weight_scale_2" };
    let activations = if divides { "input_global_scale" } else { "input_scale" };
    let named = |ending: &str| format!("a.proj.{ending}");
    let one = if pick % 4 < 2 { vec![] } else { vec![1] };
    Case {
        words: if divides { "divisor" } else { "factor" }.to_owned(),
        config: json!({ "quantization_config": { "quant_method": "modelopt", "group_size": 16 } }),
        tensors: vec![
            tensor(&named(ending), "U8", &[rows, cols / 2], nibbles(&codes)),
            tensor(&named("weight_scale"), "F8_E4M3", &[rows, cols / 16], scales),
            tensor(&named(second), "F32", &one, floats("F32", &[global])),
            tensor(&named(activations), "F32", &one, floats("F32", &[3.0])),
        ],
        unused: 1,
        name: NAME.to_owned(),
        dtype: DType::BF16,
        shape: vec![rows, cols],
        values,
    }
}

/// Codes in words of 32 bits, along lines of `length` codes that fill up their last word.
fn words(codes: &[u8], length: u64, bits: u64) -> Vec<u8> {
    let each = (32 / bits) as usize;
    let word = |codes: &[u8]| {
        codes.iter().enumerate().fold(0u32, |word, (at, code)| word | u32::from(*code) << (at as u64 * bits))
    };
    codes
        .chunks(length as usize)
        .flat_map(|line| line.chunks(each).flat_map(|codes| word(codes).to_le_bytes()))
        .collect()
}

/// A matrix with rows and columns exchanged.
fn turned<T: Copy>(data: &[T], rows: u64, cols: u64) -> Vec<T> {
    let place = |index: u64| (index % rows * cols + index / rows) as usize;
    (0..rows * cols).map(|index| data[place(index)]).collect()
}

/// A matrix of words with rows and columns exchanged.
fn turned_words(words: &[u8], rows: u64, cols: u64) -> Vec<u8> {
    turned(words.as_chunks::<4>().0, rows, cols).concat()
}

/// AWQ stores columns 0, 2, 4, 6, 1, 3, 5, 7 of each eight in the places 0 to 7 of a word.
fn mixed(line: &[u8]) -> Vec<u8> {
    line.chunks(8).flat_map(|eight| [0, 2, 4, 6, 1, 3, 5, 7].map(|from| eight[from])).collect()
}

/// compressed-tensors' packed integers: symmetric or with zero points, with or without an order.
pub(crate) fn integers(draw: Draw) -> Case {
    let Draw { rows, cols, pick, seed, .. } = draw;
    let mut dice = Dice(seed);
    let (bits, group) = ([4, 8][pick as usize % 2], [32, 16][pick as usize / 2 % 2]);
    let (zeros, ordered) = (pick % 3 == 1, pick % 5 == 1);
    let cols = cols.next_multiple_of(group);
    let groups = cols / group;
    let draw = |dice: &mut Dice, count: u64| {
        (0..count).map(|_| (dice.next() % (1 << bits)) as u8).collect::<Vec<_>>()
    };
    let (codes, mut points) = (draw(&mut dice, rows * cols), draw(&mut dice, rows * groups));
    if pick >= EXACT {
        points = points.into_iter().map(|point| 1 << (u64::from(point) % bits)).collect();
    }
    let dtype = ["BF16", "F16"][pick as usize % 2];
    let scales = dice.scales(rows * groups);
    let kept = stored(dtype, &scales);
    let order: Vec<u64> =
        (0..cols).map(|col| if ordered { dice.next() % groups } else { col / group }).collect();
    let values = each(1, rows, cols, |_, row, col| {
        let at = (row * groups + order[col as usize]) as usize;
        let zero = if zeros { f32::from(points[at]) } else { (1 << (bits - 1)) as f32 };
        (f32::from(codes[(row * cols + col) as usize]) - zero) * kept[at]
    });
    let named = |ending: &str| format!("a.proj.weight_{ending}");
    let packed = words(&codes, cols, bits);
    let said: Vec<u8> = [rows, cols].iter().flat_map(|&size| (size as u32).to_le_bytes()).collect();
    let mut tensors = vec![
        tensor(&named("packed"), "I32", &[rows, cols * bits / 32], packed),
        tensor(&named("scale"), dtype, &[rows, groups], floats(dtype, &scales)),
        tensor(&named("shape"), "I32", &[2], said),
    ];
    if zeros {
        let across = words(&turned(&points, rows, groups), rows, bits);
        let height = rows.div_ceil(32 / bits);
        let packed = turned_words(&across, groups, height);
        tensors.push(tensor(&named("zero_point"), "I32", &[height, groups], packed));
    }
    if ordered {
        let order = order.iter().flat_map(|&group| (group as u32).to_le_bytes()).collect();
        tensors.push(tensor(&named("g_idx"), "I32", &[cols], order));
    }
    let weights = json!({ "num_bits": bits, "group_size": group, "type": "int", "symmetric": !zeros });
    let config = json!({ "quant_method": "compressed-tensors", "config_groups": { "group_0": { "weights": weights } } });
    Case {
        words: format!("{bits}-bit integers"),
        config: json!({ "quantization_config": config }),
        tensors,
        unused: 0,
        name: NAME.to_owned(),
        dtype: DType::from_name(dtype).unwrap(),
        shape: vec![rows, cols],
        values,
    }
}

/// AWQ and GPTQ, the latter in both versions and with an order.
pub(crate) fn quantized(draw: Draw) -> Case {
    let Draw { rows, cols, pick, seed, .. } = draw;
    let mut dice = Dice(seed);
    let awq = pick % 2 == 0;
    let bits = if awq { 4 } else { [4, 8][pick as usize / 2 % 2] };
    let (group, rows, cols) = (32, rows.next_multiple_of(8), cols.next_multiple_of(32));
    let groups = cols / group;
    let (newer, ordered) = (pick % 3 == 0, !awq && pick % 5 < 2);
    let most = 1u64 << bits;
    let codes: Vec<u8> = (0..rows * cols).map(|_| (dice.next() % most) as u8).collect();
    let mut points: Vec<u8> = (0..rows * groups).map(|_| (dice.next() % most) as u8).collect();
    let scales = dice.scales(rows * groups);
    let kept = stored("F16", &scales);
    let order: Vec<u64> =
        (0..cols).map(|col| if ordered { dice.next() % groups } else { col / group }).collect();
    let plus = if awq || newer { 0.0 } else { 1.0 };
    if pick >= EXACT {
        let power = |point: u8| (1 << (u64::from(point) % bits)) - plus as u8;
        points = points.into_iter().map(power).collect();
    }
    let values = each(1, rows, cols, |_, row, col| {
        let at = (row * groups + order[col as usize]) as usize;
        (f32::from(codes[(row * cols + col) as usize]) - (f32::from(points[at]) + plus)) * kept[at]
    });
    let (by_columns, by_groups) = (turned(&codes, rows, cols), turned(&points, rows, groups));
    let (qweight, qzeros) = if awq {
        (words(&mixed(&by_columns), rows, 4), words(&mixed(&by_groups), rows, 4))
    } else {
        let along = words(&codes, cols, bits);
        (turned_words(&along, rows, cols * bits / 32), words(&by_groups, rows, bits))
    };
    let qweight_shape = if awq { [cols, rows / 8] } else { [cols * bits / 32, rows] };
    let named = |ending: &str| format!("a.proj.{ending}");
    let mut tensors = vec![
        tensor(&named("qweight"), "I32", &qweight_shape, qweight),
        tensor(&named("qzeros"), "I32", &[groups, rows * bits / 32], qzeros),
        tensor(&named("scales"), "F16", &[groups, rows], floats("F16", &turned(&scales, rows, groups))),
    ];
    if ordered {
        let order = order.iter().flat_map(|&group| (group as u32).to_le_bytes()).collect();
        tensors.push(tensor(&named("g_idx"), "I32", &[cols], order));
    }
    let method = if awq { "awq" } else { "gptq" };
    let version = if newer { "gptq_v2" } else { "gptq" };
    Case {
        words: method.to_uppercase(),
        config: json!({ "quantization_config": {
            "quant_method": method, "bits": bits, "group_size": group, "checkpoint_format": version,
        } }),
        tensors,
        unused: 0,
        name: NAME.to_owned(),
        dtype: DType::F16,
        shape: vec![rows, cols],
        values,
    }
}

/// 8-bit integers with a scale a row, for blocks or for all; half of them with a zero point for each scale.
fn bytes(draw: Draw) -> Case {
    let Draw { rows, cols, pick, seed, .. } = draw;
    let mut dice = Dice(seed);
    let codes = dice.bytes(rows * cols, |_| true);
    let (high, wide) = [(1, cols), (3, 5), (rows, cols)][pick as usize % 3];
    let grid = [rows.div_ceil(high), cols.div_ceil(wide)];
    let count = grid[0] * grid[1];
    let (scales, points) = (dice.scales(count), dice.bytes(count, |_| true));
    let (kept, zeros) = (stored("BF16", &scales), pick % 2 == 1);
    let values = each(1, rows, cols, |_, row, col| {
        let place = (row / high * grid[1] + col / wide) as usize;
        let zero = if zeros { f32::from(points[place] as i8) } else { 0.0 };
        (f32::from(codes[(row * cols + col) as usize] as i8) - zero) * kept[place]
    });
    let mut tensors = vec![
        tensor(NAME, "I8", &[rows, cols], codes),
        tensor(&format!("{NAME}_scale"), "BF16", &grid, floats("BF16", &scales)),
    ];
    if zeros {
        tensors.push(tensor(&format!("{NAME}_zero_point"), "I8", &grid, points));
    }
    let blocks = (pick % 3 == 1).then_some([high, wide]);
    Case {
        words: "8-bit integers".to_owned(),
        config: json!({ "quantization_config": { "quant_method": "compressed-tensors", "weight_block_size": blocks } }),
        tensors,
        unused: 0,
        name: NAME.to_owned(),
        dtype: DType::BF16,
        shape: vec![rows, cols],
        values,
    }
}

/// MLX's affine codes: each operation is rounded.
fn mlx(draw: Draw) -> Case {
    let Draw { lead, rows, cols, pick, seed } = draw;
    let mut dice = Dice(seed);
    let (bits, group) = ([4u64, 8, 2][pick as usize % 3], [32, 64][pick as usize % 2]);
    let cols = cols.next_multiple_of(group);
    let groups = cols / group;
    let codes: Vec<u8> = (0..lead * rows * cols).map(|_| (dice.next() % (1 << bits)) as u8).collect();
    let scales = stored("BF16", &dice.scales(lead * rows * groups));
    let biases = stored("BF16", &dice.scales(lead * rows * groups));
    let values = each(lead, rows, cols, |matrix, row, col| {
        let at = (matrix * rows + row) * cols + col;
        let group = (at / group) as usize;
        stored("BF16", &[f32::from(codes[at as usize]) * scales[group]])[0] + biases[group]
    });
    let format = json!({ "bits": bits, "group_size": group });
    Case {
        words: format!("MLX {bits}-bit g{group}"),
        config: json!({ "quantization": { "bits": 3, "group_size": 128, "a.proj": format } }),
        tensors: vec![
            tensor(NAME, "U32", &shape(lead, &[rows, cols * bits / 32]), words(&codes, cols, bits)),
            tensor("a.proj.scales", "BF16", &shape(lead, &[rows, groups]), floats("BF16", &scales)),
            tensor("a.proj.biases", "BF16", &shape(lead, &[rows, groups]), floats("BF16", &biases)),
        ],
        unused: 0,
        name: NAME.to_owned(),
        dtype: DType::BF16,
        shape: shape(lead, &[rows, cols]),
        values,
    }
}

const MAKERS: [fn(Draw) -> Case; 8] = [fp8_blocks, fp8_wholes, mxfp4, nvfp4, integers, quantized, bytes, mlx];

/// Any format, small.
pub(crate) fn any_format() -> impl Strategy<Value = Case> {
    (0..MAKERS.len(), 1..4u64, 2..40u64, 2..150u64, 0..64u64, any::<u64>()).prop_map(
        |(maker, lead, rows, cols, pick, seed)| MAKERS[maker](Draw { lead, rows, cols, pick, seed }),
    )
}

/// Every format, larger than a tile.
pub(crate) fn large() -> Vec<Case> {
    let draw = |pick| Draw { lead: 1, rows: 600, cols: 700, pick, seed: pick };
    MAKERS.iter().flat_map(|make| (0..2).map(move |pick| make(draw(pick)))).collect()
}
