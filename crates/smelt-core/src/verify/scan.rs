//! Reads every tensor once: hashes, finite numbers, groups that were lost.
//!
//! **Lost groups.** MLX gives a group the scale `(max - min) / (2^bits - 1)`, at least 1e-7: with affine codes no
//! scale is ever zero, and a scale above that floor means that the group has its largest and its smallest
//! value, so at least two different codes. A group with a scale of zero, or one code for all of its weights
//! where the scale says otherwise (and which is no zero, as other tools write it), lost its scales or its
//! codes. In the floating-point formats a group of zeros has the scale of a zero (byte 0, or 127 by MLX's CPU
//! rule), so zeros under any other scale are odd there. Runs of such groups are errors for affine codes;
//! a single one may be the doing of a tool with rules of its own.

use smelt_kernels::{Float, Format, Mode, all_finite, convert};

use super::finding::{Check, Findings};
use super::hashes::{Checked, Hashes};
use super::model::Model;
use super::parallel::Crew;
use super::parameter::{Packed, Parameter, Stored};
use crate::Result;
use crate::checkpoint::StoredTensor;
use crate::pipeline::{Event, Observer};

/// Bytes that are read at once.
const PIECE: u64 = 1 << 20;

/// As many lost groups in a row are an error.
const RUN: u64 = 4;

/// Scales up to here may be the floor that MLX sets, rounded to a half.
const FLOOR: f32 = 2e-7;

const AGAIN: &str = "quantize the model again, or download it again";

/// What the workers share.
#[derive(Clone, Copy)]
pub(super) struct Scan<'a> {
    pub(super) model: &'a Model,
    pub(super) hashes: Option<&'a Hashes>,
    pub(super) crew: Crew<'a>,
    pub(super) observer: &'a dyn Observer,
}

impl Scan<'_> {
    /// Reads every parameter.
    pub(super) fn run(
        &self,
        parameters: &[(Parameter<'_>, Option<Format>)],
        findings: &mut Findings,
    ) -> Result<()> {
        let sizes: Vec<u64> = parameters.iter().map(|(parameter, _)| parameter.bytes()).collect();
        let found = self.crew.each(&sizes, |index| {
            let (parameter, format) = &parameters[index];
            let mut found = Findings::default();
            self.parameter(parameter, *format, &mut found)?;
            Ok(found)
        })?;
        for finding in found.into_iter().flat_map(|found| found.all) {
            for name in finding.names {
                findings.add((finding.severity, finding.check), name, finding.what.clone(), finding.advice);
            }
        }
        Ok(())
    }

    fn parameter(
        &self,
        parameter: &Parameter<'_>,
        format: Option<Format>,
        findings: &mut Findings,
    ) -> Result<()> {
        match (parameter.stored, format) {
            (Stored::Packed(packed), Some(format)) if packed.mismatch().is_none() => {
                self.packed(parameter.name, &packed, format, findings)
            }
            _ => parameter.tensors().try_for_each(|tensor| self.plain(tensor, findings)),
        }
    }

    /// A tensor as it is.
    fn plain(&self, tensor: &StoredTensor, findings: &mut Findings) -> Result<()> {
        let mut hash = Checked::new(&tensor.name, self.hashes);
        let mut bad = Bad::default();
        let mut piece = vec![0; PIECE.min(tensor.bytes) as usize];
        let mut at = 0;
        while at < tensor.bytes {
            let piece = &mut piece[..PIECE.min(tensor.bytes - at) as usize];
            self.read(tensor, at, piece)?;
            hash.update(piece);
            bad.look(tensor, at, piece);
            at += piece.len() as u64;
        }
        hash.finish(findings);
        bad.tell(tensor, findings);
        Ok(())
    }

    /// Codes, scales and biases side by side.
    fn packed(&self, name: &str, packed: &Packed<'_>, format: Format, findings: &mut Findings) -> Result<()> {
        let mut parts = Parts::new(packed, self.hashes);
        let mut groups = Groups::new(format, packed.scales.dtype.float());
        let code_bytes = format.code_bytes() as u64;
        let (all, most) = (packed.codes.bytes / code_bytes, PIECE / code_bytes);
        let mut at = 0;
        while at < all {
            let count = most.min(all - at);
            parts.read(self, at, count, code_bytes)?;
            groups.look(&parts.codes, &parts.scales, &parts.biases);
            at += count;
        }
        parts.finish(findings);
        groups.tell(name, packed.scales, findings);
        Ok(())
    }

    fn read(&self, tensor: &StoredTensor, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.model.read(tensor, offset, buf)?;
        self.observer.on(&Event::Block { bytes: buf.len() as u64 });
        Ok(())
    }
}

/// NaN and infinity in a tensor.
#[derive(Debug, Default)]
struct Bad {
    count: u64,
    first: Option<u64>,
}

impl Bad {
    fn look(&mut self, tensor: &StoredTensor, offset: u64, bytes: &[u8]) {
        let Some(float) = tensor.dtype.float() else { return };
        if all_finite(float, bytes) {
            return;
        }
        let size = float.size();
        let before = offset / size as u64;
        let bad = bytes.chunks_exact(size).enumerate().filter(|(_, element)| !all_finite(float, element));
        for (place, _) in bad {
            self.count += 1;
            self.first.get_or_insert(before + place as u64);
        }
    }

    fn tell(&self, tensor: &StoredTensor, findings: &mut Findings) {
        if let Some(first) = self.first {
            let what = format!("{} elements are NaN or infinite, the first at {first}", self.count);
            findings.error(Check::Finite, &tensor.name, what, AGAIN);
        }
    }
}

/// The tensors of a module, read group by group.
struct Parts<'a> {
    packed: Packed<'a>,
    hashes: Vec<Checked<'a>>,
    bad: [Bad; 2],
    codes: Vec<u8>,
    scales: Vec<u8>,
    biases: Vec<u8>,
}

impl<'a> Parts<'a> {
    fn new(packed: &Packed<'a>, hashes: Option<&'a Hashes>) -> Self {
        let tensors = [Some(packed.codes), Some(packed.scales), packed.biases];
        let hashes = tensors.into_iter().flatten().map(|tensor| Checked::new(&tensor.name, hashes)).collect();
        Self {
            packed: *packed,
            hashes,
            bad: <[Bad; 2]>::default(),
            codes: Vec::new(),
            scales: Vec::new(),
            biases: Vec::new(),
        }
    }

    /// Reads `count` groups from the group `at` on.
    fn read(&mut self, scan: &Scan<'_>, at: u64, count: u64, code_bytes: u64) -> Result<()> {
        let scale_bytes = self.packed.scales.dtype.bits() / 8;
        self.codes.resize((count * code_bytes) as usize, 0);
        scan.read(self.packed.codes, at * code_bytes, &mut self.codes)?;
        self.scales.resize((count * scale_bytes) as usize, 0);
        scan.read(self.packed.scales, at * scale_bytes, &mut self.scales)?;
        self.bad[0].look(self.packed.scales, at * scale_bytes, &self.scales);
        if let Some(biases) = self.packed.biases {
            self.biases.resize((count * scale_bytes) as usize, 0);
            scan.read(biases, at * scale_bytes, &mut self.biases)?;
            self.bad[1].look(biases, at * scale_bytes, &self.biases);
        }
        let read = [&self.codes, &self.scales, &self.biases];
        self.hashes.iter_mut().zip(read).for_each(|(hash, bytes)| hash.update(bytes));
        Ok(())
    }

    fn finish(&self, findings: &mut Findings) {
        self.hashes.iter().for_each(|hash| hash.finish(findings));
        self.bad[0].tell(self.packed.scales, findings);
        if let Some(biases) = self.packed.biases {
            self.bad[1].tell(biases, findings);
        }
    }
}

/// Groups of one kind: how many, where the first, how many in a row.
#[derive(Debug, Default)]
struct Lost {
    count: u64,
    first: u64,
    run: u64,
    longest: u64,
}

impl Lost {
    fn note(&mut self, lost: bool, at: u64) {
        if !lost {
            self.run = 0;
            return;
        }
        if self.count == 0 {
            self.first = at;
        }
        self.count += 1;
        self.run += 1;
        self.longest = self.longest.max(self.run);
    }
}

/// What the groups of a module look like.
struct Groups {
    format: Format,
    float: Option<Float>,
    seen: u64,
    /// A scale of zero.
    flat: Lost,
    /// One code for all weights, and a scale that says otherwise.
    stuck: Lost,
    /// A scale or code that stands for NaN or infinity.
    bad: Lost,
    wide: [Vec<u8>; 2],
}

impl Groups {
    fn new(format: Format, float: Option<Float>) -> Self {
        let (flat, stuck, bad) = (Lost::default(), Lost::default(), Lost::default());
        Self { format, float, seen: 0, flat, stuck, bad, wide: [Vec::new(), Vec::new()] }
    }

    fn look(&mut self, codes: &[u8], scales: &[u8], biases: &[u8]) {
        match self.float {
            Some(float) => self.affine(float, codes, scales, biases),
            None => self.narrow(codes, scales),
        }
    }

    fn affine(&mut self, float: Float, codes: &[u8], scales: &[u8], biases: &[u8]) {
        let [wide_scales, wide_biases] = &mut self.wide;
        for (wide, bytes) in [(&mut *wide_scales, scales), (&mut *wide_biases, biases)] {
            wide.resize(bytes.len() / float.size() * 4, 0);
            convert(float, Float::F32, bytes, wide);
        }
        let groups = codes.chunks_exact(self.format.code_bytes());
        for ((codes, scale), bias) in groups.zip(floats(wide_scales)).zip(floats(wide_biases)) {
            let stuck = scale.abs() > FLOOR
                && one_code(codes, self.format.bits())
                    .is_some_and(|code| (code as f32 * scale + bias).abs() > scale.abs() / 64.0);
            self.flat.note(scale == 0.0, self.seen);
            self.stuck.note(stuck, self.seen);
            self.seen += 1;
        }
    }

    fn narrow(&mut self, codes: &[u8], scales: &[u8]) {
        let (mode, of_zero) = (self.format.mode(), if self.format.mode() == Mode::Nvfp4 { 0 } else { 127 });
        for (codes, &scale) in codes.chunks_exact(self.format.code_bytes()).zip(scales) {
            let bad = match mode {
                Mode::Nvfp4 => scale & 0x7F == 0x7F,
                Mode::Mxfp8 => scale == 255 || codes.iter().any(|code| code & 0x7F == 0x7F),
                _ => scale == 255,
            };
            let stuck = scale != 0 && scale != of_zero && codes.iter().all(|&code| code == 0);
            self.bad.note(bad, self.seen);
            self.stuck.note(stuck, self.seen);
            self.seen += 1;
        }
    }

    fn tell(&self, name: &str, scales: &StoredTensor, findings: &mut Findings) {
        let across = scales.shape.last().copied().unwrap_or(1).max(1);
        let place = |lost: &Lost| format!("the first in row {}", lost.first / across);
        if self.bad.count > 0 {
            let what = format!("{} groups decode to NaN or infinity, {}", self.bad.count, place(&self.bad));
            findings.error(Check::Finite, name, what, AGAIN);
        }
        let affine = self.float.is_some();
        for (lost, kind) in [
            (&self.flat, "have a scale of zero, which MLX never writes"),
            (&self.stuck, "hold one code for all weights, which their scale contradicts"),
        ] {
            if lost.count == 0 {
                continue;
            }
            let what = format!("{} of {} groups {kind}, {}", lost.count, self.seen, place(lost));
            if affine && lost.longest >= RUN {
                findings.error(Check::Dead, name, what, AGAIN);
            } else {
                findings.warning(Check::Dead, name, what, "compare with the source: `--against`");
            }
        }
    }
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks().0.iter().map(|&element| f32::from_le_bytes(element))
}

/// The code that all weights of a group have, if it is one.
fn one_code(codes: &[u8], bits: u8) -> Option<u32> {
    // Equal codes repeat after as many bytes as codes need to end on a byte.
    let period = match bits {
        1 | 2 | 4 | 8 => 1,
        6 => 3,
        odd => usize::from(odd),
    };
    let (head, rest) = codes.split_at_checked(period)?;
    if !rest.chunks(period).all(|chunk| chunk == head) {
        return None;
    }
    let stream = head.iter().rev().fold(0u64, |stream, &byte| (stream << 8) | u64::from(byte));
    let mask = (1u64 << bits) - 1;
    let mut all =
        (0..period * 8 / usize::from(bits)).map(|place| (stream >> (place * usize::from(bits))) & mask);
    let first = all.next()?;
    all.all(|code| code == first).then_some(first as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_code_in_every_width() {
        for bits in [2u8, 3, 4, 5, 6, 8] {
            for code in [0u32, 1, 2, (1 << bits) - 1] {
                let mut codes = vec![0u8; 32 * usize::from(bits) / 8];
                for at in (0..32).flat_map(|place| (0..bits).map(move |bit| (place, bit))) {
                    let position = at.0 * usize::from(bits) + usize::from(at.1);
                    codes[position / 8] |= (((code >> at.1) & 1) as u8) << (position % 8);
                }
                assert_eq!(one_code(&codes, bits), Some(code), "{bits} bits");
                for place in [0, codes.len() / 2, codes.len() - 1] {
                    let mut other = codes.clone();
                    other[place] ^= 1;
                    assert_eq!(one_code(&other, bits), None, "{bits} bits, byte {place}");
                }
            }
        }
    }
}
