//! What MLX itself wrote: words of codes, scales and biases.

use smelt_kernels::{Format, Mode};

use super::rules::{Packed, Rule};
use super::{LogicalTensor, Mlx, Recipe, matrices};
use crate::checkpoint::{DType, StoredTensor};

impl Packed<'_> {
    /// What MLX itself wrote.
    pub(super) fn mlx(&self) -> Rule<LogicalTensor> {
        let stem = self.stem(".weight");
        let scale = self.needed(stem, ".scales")?;
        let (lead, rows, words) = matrices(&self.tensor.shape);
        let groups = scale.1.shape.last().copied().unwrap_or(0);
        if matrices(&scale.1.shape) != (lead, rows, groups) || groups == 0 || words % groups != 0 {
            return Err(self.shape(scale.1, format!("{rows} rows of a divisor of {words}")));
        }
        let each = words / groups;
        let format = self.mlx_format(stem, scale.1, each)?;
        let biases = self.stored.find(&format!("{stem}.biases"));
        let biases = match (format.has_biases(), biases) {
            (true, None) => return Err(self.missing(format!("`{stem}.biases`"))),
            (true, Some((_, biases))) if biases.dtype != scale.1.dtype => {
                return Err(self.dtype(biases, scale.1.dtype.name()));
            }
            (true, Some((id, biases))) => {
                self.has_shape(biases, &scale.1.shape)?;
                Some(id)
            }
            (false, Some((_, biases))) => {
                return Err(self.config(
                    biases,
                    format!("of mode {}", format.mode()),
                    "no biases".to_owned(),
                ));
            }
            (false, None) => None,
        };
        if self.stored.find(&format!("{stem}.global_scale")).is_some() {
            return Err(self.unknown("of MLX with a global scale".to_owned()));
        }
        let dtype = if format.has_biases() { scale.1.dtype } else { DType::BF16 };
        let mut shape = self.tensor.shape.to_vec();
        if let Some(last) = shape.last_mut() {
            *last = groups * format.group_size() as u64;
        }
        let mlx = Mlx { format, codes: self.id, scales: scale.0, biases };
        Ok(LogicalTensor {
            name: self.tensor.name.clone(),
            dtype,
            shape: shape.into(),
            recipe: Recipe::Mlx(Box::new(mlx)),
        })
    }

    /// The format with `each` words a group: by the scales' dtype, else by what the config says.
    fn mlx_format(&self, stem: &str, scale: &StoredTensor, each: u64) -> Rule<Format> {
        let fp = [(2, Mode::Nvfp4), (4, Mode::Mxfp4), (8, Mode::Mxfp8)];
        let format = match scale.dtype {
            DType::U8 => fp.into_iter().find(|(words, _)| *words == each).and_then(|(_, mode)| {
                let (bits, group_size) = mode.defaults();
                Format::new(mode, bits, group_size)
            }),
            dtype if dtype.float().is_some() => {
                let block = self.declared.mlx.as_ref();
                // mlx-vlm takes an entry without the name of the language model as well.
                let short = stem.strip_prefix("language_model.").unwrap_or(stem);
                let entry = |path: &str| block?.get(path).filter(|own| own.is_object());
                let own = entry(stem).or_else(|| entry(short));
                let number =
                    |key: &str| own.and_then(|own| own.get(key)).or_else(|| block?.get(key))?.as_u64();
                let group_size = number("group_size").unwrap_or(0);
                let bits = (each * 32).checked_div(group_size).filter(|bits| bits * group_size == each * 32);
                let bits = bits.and_then(|bits| u8::try_from(bits).ok());
                bits.and_then(|bits| Format::new(Mode::Affine, bits, group_size as usize))
            }
            _ => return Err(self.dtype(scale, "U8, BF16, F16 or F32")),
        };
        format.ok_or_else(|| self.unknown(format!("of MLX with {each} words a scale in {}", scale.dtype)))
    }
}
