//! Integers of less than a byte, packed into words: those of compressed-tensors, AWQ and GPTQ.

use smelt_kernels::Code;

use super::codes::{Codes, Order};
use super::fit::Limits;
use super::grid::{Grid, Kind};
use super::rules::{Packed, Part, Rule, logical, scale_dtype};
use super::{LogicalTensor, Scaled, Zero, matrices};
use crate::checkpoint::{DType, StoredId, StoredTensor};

impl Packed<'_> {
    /// Integers packed into words along the rows, with half their range added.
    pub(super) fn integers(&self, stem: &str, scale: Part<'_>) -> Rule<LogicalTensor> {
        let bits = self.declared.bits().unwrap_or(4);
        if !matches!(bits, 2 | 4 | 8) {
            return Err(self.unknown(format!("packed integers of {bits} bits")));
        }
        let Some(float) = scale.1.dtype.float() else {
            return Err(self.dtype(scale.1, "F32, BF16 or F16"));
        };
        if self.tensor.shape.len() < 2 {
            return Err(self.unknown("packed integers without rows".to_owned()));
        }
        let each = 32 / bits;
        let mut shape = self.tensor.shape.to_vec();
        let words = shape.last().copied().unwrap_or(0);
        let groups = scale.1.shape.last().copied().unwrap_or(1);
        let group = self.declared.group_size().filter(|_| groups > 1);
        // With groups the row is as long as they are; the last word may be filled up.
        let cols = group.map_or(words * each, |group| groups.saturating_mul(group));
        if cols.div_ceil(each) != words {
            let found = format!("{words} words of {each} codes a row with {groups} scales");
            return Err(self.config(scale.1, found, format!("groups of {}", group.unwrap_or(0))));
        }
        if let Some(last) = shape.last_mut() {
            *last = cols;
        }
        let (lead, rows, cols) = matrices(&shape);
        let group = group.unwrap_or(cols / groups.max(1));
        let scales = self.grid(scale, &shape, Limits { block: None, group: Some(group) })?;
        let codes = Codes { id: self.id, bits: bits as u8, rows, cols, order: Order::Rows, element: 4 };
        let zero = self.zero_points(stem, scale, codes)?;
        let symmetric = matches!(zero, Zero::Same(_));
        self.symmetry(scale.1, symmetric)?;
        let order = self.stored.find(&format!("{stem}_g_idx"));
        let order = order.map(|part| self.order(part, cols)).transpose()?;
        if order.is_none() && groups > 1 && self.declared.act_order {
            return Err(self.missing(format!("`{stem}_g_idx`, which `actorder` asks for")));
        }
        let said = self.stored.find(&format!("{stem}_shape")).map(|(id, _)| id).filter(|_| lead == 1);
        let words = format!(
            "{bits}-bit integers, {}, groups of {group} (compressed-tensors)",
            if symmetric { "symmetric" } else { "with zero points" }
        );
        let recipe =
            Scaled { words, code: Code::Unsigned, codes, scales, second: None, zero, order, shape: said };
        let dtype = if float == smelt_kernels::Float::F32 { DType::BF16 } else { scale.1.dtype };
        Ok(logical(stem, dtype, shape, recipe))
    }

    /// Half the range, or what is stored for each scale, packed along the columns.
    fn zero_points(&self, stem: &str, scale: Part<'_>, codes: Codes) -> Rule<Zero> {
        let Some((id, zero)) = self.stored.find(&format!("{stem}_zero_point")) else {
            return Ok(Zero::Same((1u32 << (codes.bits - 1)) as f32));
        };
        if zero.dtype != DType::I32 {
            return Err(self.dtype(zero, "I32"));
        }
        let (_, _, groups) = matrices(&scale.1.shape);
        let lead = &self.tensor.shape[..self.tensor.shape.len() - 2];
        let height = codes.rows.div_ceil(32 / u64::from(codes.bits));
        self.has_shape(zero, &[lead, &[height, groups]].concat())?;
        let codes = Codes { id, cols: groups, order: Order::ColumnWords, ..codes };
        Ok(Zero::Stored { codes, signed: false, plus: 0.0 })
    }

    /// Refuses what the config says otherwise of zero points.
    fn symmetry(&self, scale: &StoredTensor, symmetric: bool) -> Rule<()> {
        if self.declared.allows(|weights| weights.symmetric.is_none_or(|declared| declared == symmetric)) {
            return Ok(());
        }
        let found = if symmetric { "without zero points" } else { "with zero points" };
        Err(self.config(scale, found.to_owned(), format!("symmetric is {}", !symmetric)))
    }

    /// The group of each column.
    fn order(&self, (id, order): Part<'_>, cols: u64) -> Rule<StoredId> {
        if order.dtype != DType::I32 {
            return Err(self.dtype(order, "I32"));
        }
        self.has_shape(order, &[cols])?;
        Ok(id)
    }

    /// AWQ and GPTQ: rows and columns exchanged, zero points packed like the codes of AWQ.
    pub(super) fn qweight(&self) -> Rule<LogicalTensor> {
        let stem = self.stem(".qweight");
        let scale = self.needed(stem, ".scales")?;
        let zeros = self.needed(stem, ".qzeros")?;
        if !matches!(scale.1.dtype, DType::F16 | DType::BF16 | DType::F32) {
            return Err(self.dtype(scale.1, "F16, BF16 or F32"));
        }
        let (&[high, wide], &[groups, rows]) = (&*self.tensor.shape, &*scale.1.shape) else {
            return Err(self.shape(scale.1, "two axes each".to_owned()));
        };
        let bits = self.declared.bits().unwrap_or(4);
        if !matches!(bits, 2 | 4 | 8) {
            return Err(self.unknown(format!("packed integers of {bits} bits")));
        }
        let each = 32 / bits;
        let awq = wide * each == rows && wide != rows;
        if !awq && wide != rows {
            return Err(self.shape(scale.1, format!("[.., {}] (AWQ) or [.., {wide}] (GPTQ)", wide * each)));
        }
        if awq && bits != 4 {
            return Err(self.unknown(format!("AWQ of {bits} bits")));
        }
        self.method(scale.1, if awq { "awq" } else { "gptq" })?;
        let cols = if awq { high } else { high * each };
        if groups == 0 || cols % groups != 0 {
            return Err(self.shape(scale.1, format!("as many rows as there are groups of {cols}")));
        }
        let group = cols / groups;
        let other = |declared| declared != group && !(groups == 1 && declared >= cols);
        if self.declared.group_size().is_some_and(other) {
            let declared = format!("groups of {}", self.declared.group_size().unwrap_or(0));
            return Err(self.config(scale.1, format!("in groups of {group}"), declared));
        }
        self.has_shape(zeros.1, &[groups, rows.div_ceil(each)])?;
        if zeros.1.dtype != DType::I32 {
            return Err(self.dtype(zeros.1, "I32"));
        }
        let kind = Kind::of(scale.1.dtype).expect("it is a float");
        let scales =
            Grid { id: scale.0, kind, block: (1, group), size: (rows, groups), for_each: true, turned: true };
        let order = if awq { Order::ColumnsMixed } else { Order::RowWords };
        let zero_order = if awq { Order::ColumnsMixed } else { Order::Columns };
        let bits = bits as u8;
        let codes = Codes { id: self.id, bits, rows, cols, order, element: 4 };
        let zero = Codes { id: zeros.0, bits, rows, cols: groups, order: zero_order, element: 4 };
        let plus = if awq || self.declared.zeros_as_they_are { 0.0 } else { 1.0 };
        let zero = Zero::Stored { codes: zero, signed: false, plus };
        let order = self.stored.find(&format!("{stem}.g_idx")).filter(|_| !awq);
        let order = order.map(|part| self.order(part, cols)).transpose()?;
        if order.is_none() && !awq && groups > 1 && self.declared.act_order {
            return Err(self.missing(format!("`{stem}.g_idx`, which `desc_act` asks for")));
        }
        let words = format!("{bits}-bit integers, groups of {group} ({})", if awq { "AWQ" } else { "GPTQ" });
        let recipe =
            Scaled { words, code: Code::Unsigned, codes, scales, second: None, zero, order, shape: None };
        Ok(logical(&format!("{stem}.weight"), scale_dtype(scale.1), vec![rows, cols], recipe))
    }

    /// Refuses a format that the config calls by another name.
    fn method(&self, companion: &StoredTensor, found: &str) -> Rule<()> {
        let other = if found == "awq" { "gptq" } else { "awq" };
        if self.declared.method.as_deref() == Some(other) {
            return Err(self.config(
                companion,
                format!("packed as {found} packs them"),
                format!("`{other}`"),
            ));
        }
        Ok(())
    }
}
