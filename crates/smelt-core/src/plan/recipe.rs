//! The mixed recipes of mlx-lm (`mlx_lm.convert --quant-predicate`), module for module as it applies them.
//!
//! A recipe takes the place of the model's own `quant_predicate`, so a router is quantized at the recipe's
//! width like anything else. Layers count from the first down projection's path: the place of the number
//! in it is where every other path is looked at, and a path without a number there belongs to layer 0.

use std::collections::BTreeSet;

use smelt_kernels::{Format, Mode};

use super::Widths;
use super::allocate::BitsError;
use crate::layout::{Layout, Output};

/// One of mlx-lm's recipes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// 2 bits, some modules 6.
    Mixed2_6,
    /// 3 bits, some modules 4.
    Mixed3_4,
    /// 3 bits, some modules 6.
    Mixed3_6,
    /// 4 bits, some modules 6.
    Mixed4_6,
}

impl Recipe {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Mixed2_6, Self::Mixed3_4, Self::Mixed3_6, Self::Mixed4_6];

    /// The name that mlx-lm gives it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mixed2_6 => "mixed_2_6",
            Self::Mixed3_4 => "mixed_3_4",
            Self::Mixed3_6 => "mixed_3_6",
            Self::Mixed4_6 => "mixed_4_6",
        }
    }

    /// The low and the high width.
    pub const fn bits(self) -> (u8, u8) {
        match self {
            Self::Mixed2_6 => (2, 6),
            Self::Mixed3_4 => (3, 4),
            Self::Mixed3_6 => (3, 6),
            Self::Mixed4_6 => (4, 6),
        }
    }

    /// The format of every module of a layout, in groups of `group_size`.
    ///
    /// # Errors
    /// [`BitsError::Recipe`] for a model without down projections, or whose paths mlx-lm can't count.
    pub fn widths(self, layout: &Layout, group_size: usize) -> Result<Widths, BitsError> {
        let error = |why: String| BitsError::Recipe { recipe: self.name(), why };
        let format = |bits| {
            Format::new(Mode::Affine, bits, group_size)
                .ok_or_else(|| error(super::options::unknown(Mode::Affine, bits, group_size)))
        };
        let (low, high) = (format(self.bits().0)?, format(self.bits().1)?);
        let paths: Vec<&str> = layout.outputs.iter().filter_map(module).collect();
        let down = paths.iter().find(|path| path.contains("down_proj"));
        let down = down.ok_or_else(|| error("it has no `down_proj`".to_owned()))?;
        let layers = Layers::of(down, &layout.outputs);
        let chosen = paths.iter().map(|path| {
            let index = layers.index(path).map_err(error)?;
            let wanted = path.contains("lm_head") || (is_raised(path) && layers.use_more(index));
            Ok(((*path).to_owned(), if wanted { high } else { low }))
        });
        chosen.collect()
    }
}

/// The path of a parameter's module, if that can be quantized.
fn module(output: &Output) -> Option<&str> {
    output.module.map(|_| output.module_path())
}

/// Whether a module gets more bits in some layers.
fn is_raised(path: &str) -> bool {
    ["v_proj", "v_a_proj", "v_b_proj", "down_proj"].iter().any(|part| path.contains(part))
}

/// Where paths have the number of their layer, and how many layers there are.
struct Layers {
    place: usize,
    count: u64,
}

impl Layers {
    fn of(down: &str, outputs: &[Output]) -> Self {
        let parts: Vec<&str> = down.split('.').collect();
        let place = parts.iter().position(is_number).unwrap_or(parts.len() - 1);
        let prefix = format!("{}.", parts[..place].join("."));
        let numbers: BTreeSet<&str> = outputs
            .iter()
            .filter_map(|output| output.name.strip_prefix(&prefix)?.split('.').next())
            .filter(is_number)
            .collect();
        Self { place, count: numbers.len() as u64 }
    }

    fn index(&self, path: &str) -> Result<u64, String> {
        match path.split('.').nth(self.place) {
            None => Ok(0),
            Some(part) => part
                .parse()
                .map_err(|_| format!("`{path}` has `{part}` where `down_proj` has the number of its layer")),
        }
    }

    /// The first and the last eighth, and every third between.
    fn use_more(&self, index: u64) -> bool {
        let eighth = self.count / 8;
        index < eighth || index >= 7 * self.count / 8 || (index - eighth) % 3 == 2
    }
}

fn is_number(part: &&str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_near_the_ends_and_every_third_get_more() {
        let layers = Layers { place: 2, count: 16 };
        let more: Vec<u64> = (0..16).filter(|&index| layers.use_more(index)).collect();
        assert_eq!(more, [0, 1, 4, 7, 10, 13, 14, 15]);
        assert_eq!(layers.index("lm_head"), Ok(0));
        assert_eq!(layers.index("model.layers.7.mlp.down_proj"), Ok(7));
        assert!(layers.index("a.b.c.d").is_err());
    }
}
