//! What every [`Source`] must do, as functions that panic when it does not.
//!
//! For the tests of implementations, here and in other crates.

use super::{FileEntry, Source, read_whole};
use crate::{Error, Result, SourceError};

/// Files of the fixture: nested, empty, in an order that is not theirs.
const FILES: [(&str, &[u8]); 5] = [
    ("sub/deeper/c.txt", b"gamma"),
    ("b.bin", b"0123456789"),
    ("a.txt", b"alpha"),
    ("sub/empty", b""),
    ("sub-way.txt", b"sorts before the folder `sub/`"),
];

/// Runs every check over sources that `make` fills with the files it is given.
///
/// # Panics
/// When a check fails.
pub fn conformance(make: impl Fn(&[(&str, &[u8])]) -> Box<dyn Source>) {
    let source = make(&FILES);
    assert!(!source.location().is_empty(), "a source must say where it is");
    lists_every_file_sorted(&*source);
    reads_any_range(&*source);
    refuses_reads_past_the_end(&*source);
    refuses_names_it_does_not_list(&*source);
    reads_whole_files(&*source);
    let empty = make(&[]).list().expect("an empty source can be listed");
    assert_eq!(empty, [], "an empty source has no files");
    concurrent_reads(&make);
}

fn read(source: &dyn Source, path: &str, offset: u64, length: usize) -> Result<Vec<u8>> {
    let mut buf = vec![0xEE; length];
    source.read_at(path, offset, &mut buf).map(|()| buf)
}

fn lists_every_file_sorted(source: &dyn Source) {
    let mut expected: Vec<FileEntry> = FILES
        .iter()
        .map(|(path, bytes)| FileEntry { path: (*path).to_owned(), size: bytes.len() as u64 })
        .collect();
    expected.sort_by(|a, b| a.path.as_bytes().cmp(b.path.as_bytes()));
    assert_eq!(source.list().expect("the fixture can be listed"), expected);
}

fn reads_any_range(source: &dyn Source) {
    for (path, bytes) in FILES {
        for start in 0..=bytes.len() {
            for end in start..=bytes.len() {
                let part = read(source, path, start as u64, end - start).expect("a valid range");
                assert_eq!(part, &bytes[start..end], "bytes {start}..{end} of {path}");
            }
        }
    }
}

fn refuses_reads_past_the_end(source: &dyn Source) {
    for (offset, length) in [(0, 11), (9, 2), (10, 1), (1 << 40, 1), (u64::MAX, 1), (u64::MAX, 9)] {
        let result = read(source, "b.bin", offset, length);
        assert!(
            matches!(result, Err(Error::Source(SourceError::PastEnd { size: 10, .. }))),
            "{length} bytes at {offset} of ten must be past the end: {result:?}"
        );
    }
    let nothing = read(source, "b.bin", u64::MAX, 0).expect("an empty read is always inside");
    assert!(nothing.is_empty());
}

fn refuses_names_it_does_not_list(source: &dyn Source) {
    let names = ["missing", "", "sub", "sub/", "sub/missing", "a.txt/x", "../a.txt", "./a.txt", "/"];
    for name in names {
        for length in [0, 1] {
            let result = read(source, name, 0, length);
            assert!(
                matches!(result, Err(Error::Source(SourceError::NoSuchFile { .. }))),
                "`{name}` must not be a file: {result:?}"
            );
        }
    }
}

fn reads_whole_files(source: &dyn Source) {
    let whole = |path, limit| read_whole(source, path, limit);
    assert_eq!(whole("b.bin", 10).expect("ten bytes, ten allowed"), b"0123456789");
    assert!(whole("sub/empty", 0).expect("an empty file").is_empty());
    assert!(matches!(
        whole("b.bin", 9),
        Err(Error::Source(SourceError::TooLarge { size: 10, limit: 9, .. }))
    ));
    assert!(matches!(whole("missing", 9), Err(Error::Source(SourceError::NoSuchFile { .. }))));
}

/// More files than an implementation would keep open, read by several threads in different orders.
fn concurrent_reads(make: &impl Fn(&[(&str, &[u8])]) -> Box<dyn Source>) {
    const COUNT: usize = 100;
    let names: Vec<String> = (0..COUNT).map(|i| format!("part-{i:03}")).collect();
    let bodies: Vec<Vec<u8>> = (0..COUNT).map(|i| vec![i as u8; 64 + i]).collect();
    let files: Vec<(&str, &[u8])> =
        names.iter().zip(&bodies).map(|(name, body)| (name.as_str(), body.as_slice())).collect();
    let source = make(&files);
    std::thread::scope(|scope| {
        for stride in [1, 3, 7, 9] {
            let (source, files) = (&source, &files);
            scope.spawn(move || {
                for step in 0..4 * COUNT {
                    let (name, body) = files[step * stride % COUNT];
                    let offset = step % body.len();
                    let part = read(&**source, name, offset as u64, body.len() - offset);
                    assert_eq!(part.expect("a valid range"), &body[offset..], "{name}");
                }
            });
        }
    });
}
