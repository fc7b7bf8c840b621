//! The parameters that stored tensors make up: a plain tensor, or codes with their scales and biases.
//!
//! As the loaders have it, a module is quantized if and only if `<path>.scales` stands beside its
//! `<path>.weight`. Which format it has follows from the shapes alone, once the length of a row is known:
//!
//! ```text
//! codes   [..., row * bits / 32]  u32        row = group_size * scales' last dimension
//! scales  [..., row / group_size]            u8: mxfp4, mxfp8, nvfp4; a float: affine, with biases
//! ```

use smelt_kernels::{Format, Mode};

use super::model::Model;
use crate::checkpoint::{DType, StoredTensor};

/// A parameter of a model.
#[derive(Clone, Debug)]
pub(super) struct Parameter<'a> {
    /// Its name, such as `lm_head.weight`.
    pub(super) name: &'a str,
    /// How it is stored.
    pub(super) stored: Stored<'a>,
}

/// How a parameter is stored.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stored<'a> {
    /// As it is.
    Plain(&'a StoredTensor),
    /// As codes.
    Packed(Packed<'a>),
}

/// The tensors of a quantized module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packed<'a> {
    /// The codes.
    pub(super) codes: &'a StoredTensor,
    /// The scales.
    pub(super) scales: &'a StoredTensor,
    /// The biases, where there are any.
    pub(super) biases: Option<&'a StoredTensor>,
}

/// The path of the module that a parameter belongs to.
pub(super) fn module(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

impl<'a> Parameter<'a> {
    /// Every stored tensor of it.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &'a StoredTensor> {
        let (first, rest) = match self.stored {
            Stored::Plain(tensor) => (tensor, [None, None]),
            Stored::Packed(packed) => (packed.codes, [Some(packed.scales), packed.biases]),
        };
        std::iter::once(first).chain(rest.into_iter().flatten())
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> u64 {
        self.tensors().map(|tensor| tensor.bytes).sum()
    }
}

impl Packed<'_> {
    /// What the dtypes say of the mode: affine has floats with biases, the others bytes without.
    pub(super) fn is_affine(&self) -> bool {
        self.scales.dtype != DType::U8
    }

    /// Why the three tensors can't be those of one module, whatever its format.
    pub(super) fn mismatch(&self) -> Option<String> {
        let Self { codes, scales, biases } = self;
        if codes.dtype != DType::U32 {
            return Some(format!("its codes are {}, the loaders take U32 only", codes.dtype));
        }
        let leading = |tensor: &StoredTensor| tensor.shape.split_last().map(|(_, rest)| rest.to_vec());
        if codes.shape.len() < 2 || leading(codes) != leading(scales) {
            return Some(format!(
                "codes of shape {:?} do not go with scales of {:?}",
                codes.shape, scales.shape
            ));
        }
        match biases {
            None if self.is_affine() => {
                Some(format!("it has scales of {}, which need biases, and there are none", scales.dtype))
            }
            Some(_) if !self.is_affine() => Some("it has biases beside scales of one byte".to_owned()),
            Some(biases) if biases.shape != scales.shape || biases.dtype != scales.dtype => Some(format!(
                "biases of shape {:?} ({}) do not go with scales of {:?} ({})",
                biases.shape, biases.dtype, scales.shape, scales.dtype
            )),
            _ if self.is_affine() && scales.dtype.float().is_none() => {
                Some(format!("its scales are {}, no type that MLX computes with", scales.dtype))
            }
            _ => None,
        }
    }

    /// Packed words and groups of a row.
    fn widths(&self) -> (u64, u64) {
        let last = |tensor: &StoredTensor| tensor.shape.last().copied().unwrap_or(0);
        (last(self.codes), last(self.scales))
    }

    /// Whether a format has tensors of these shapes and dtypes.
    pub(super) fn fits(&self, format: Format) -> bool {
        let (words, groups) = self.widths();
        self.is_affine() == (format.mode() == Mode::Affine)
            && Some(words * 32) == groups.checked_mul(format.group_size() as u64 * u64::from(format.bits()))
    }

    /// The formats that have tensors of these shapes and dtypes, for rows of `row` elements if that is
    /// known.
    pub(super) fn formats(&self, row: Option<u64>) -> Vec<Format> {
        let (_, groups) = self.widths();
        let fits = |format: &Format| {
            self.fits(*format) && row.is_none_or(|row| groups * format.group_size() as u64 == row)
        };
        all_formats().filter(fits).collect()
    }

    /// The shape of the weight in this format.
    pub(super) fn shape(&self, format: Format) -> Vec<u64> {
        let mut shape = self.scales.shape.to_vec();
        if let Some(last) = shape.last_mut() {
            *last *= format.group_size() as u64;
        }
        shape
    }
}

/// Every format of MLX that smelt decodes.
fn all_formats() -> impl Iterator<Item = Format> {
    let affine = [2, 3, 4, 5, 6, 8].into_iter().flat_map(|bits| {
        [32, 64, 128].into_iter().filter_map(move |group| Format::new(Mode::Affine, bits, group))
    });
    let floats = [Mode::Mxfp4, Mode::Mxfp8, Mode::Nvfp4].into_iter().filter_map(|mode| {
        let (bits, group) = mode.defaults();
        Format::new(mode, bits, group)
    });
    affine.chain(floats)
}

impl Model {
    /// The parameters, sorted by name.
    pub(super) fn parameters(&self) -> Vec<Parameter<'_>> {
        self.tensors.iter().filter_map(|tensor| self.parameter(tensor)).collect()
    }

    /// The parameter that begins with this tensor; `None` for scales and biases of another one.
    fn parameter<'a>(&'a self, tensor: &'a StoredTensor) -> Option<Parameter<'a>> {
        let name = &*tensor.name;
        let beside = |stem: &str, part: &str| self.find(&format!("{stem}.{part}"));
        let companion = [".scales", ".biases"].into_iter().find_map(|ending| name.strip_suffix(ending));
        if companion.is_some_and(|stem| beside(stem, "weight").is_some() && beside(stem, "scales").is_some())
        {
            return None;
        }
        let packed = name.strip_suffix(".weight").and_then(|stem| {
            let (scales, biases) = (beside(stem, "scales")?, beside(stem, "biases"));
            Some(Packed { codes: tensor, scales, biases })
        });
        Some(Parameter { name, stored: packed.map_or(Stored::Plain(tensor), Stored::Packed) })
    }
}

impl Parameter<'_> {
    /// Whether it is quantized.
    pub(super) fn is_packed(&self) -> bool {
        matches!(self.stored, Stored::Packed(_))
    }

    /// Bytes that its source takes at 16 bits, or what it takes itself.
    pub(super) fn dense_bytes(&self, format: Option<Format>) -> u64 {
        match (self.stored, format) {
            (Stored::Packed(packed), Some(format)) => packed.shape(format).iter().product::<u64>() * 2,
            _ => self.bytes(),
        }
    }

    /// Its shape; of a packed one whose format is not known that of the codes.
    pub(super) fn shape(&self, format: Option<Format>) -> Vec<u64> {
        match (self.stored, format) {
            (Stored::Packed(packed), Some(format)) => packed.shape(format),
            (Stored::Packed(packed), None) => packed.codes.shape.to_vec(),
            (Stored::Plain(tensor), _) => tensor.shape.to_vec(),
        }
    }

    /// Its format, or the dtype of what is not quantized.
    pub(super) fn format_name(&self, format: Option<Format>) -> String {
        match (self.stored, format) {
            (Stored::Packed(_), Some(format)) => format.to_string(),
            (Stored::Packed(_), None) => "unknown codes".to_owned(),
            (Stored::Plain(tensor), _) => tensor.dtype.name().to_lowercase(),
        }
    }
}
