//! Both sources against the conformance suite, and what only a file system can do.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::fs;
use std::io::{Seek, SeekFrom, Write};

use smelt_core::source::{LocalSource, MemorySource, Source, testing};
use smelt_core::{Error, SourceError};
use tempfile::TempDir;

/// A local source that removes its files at the end.
#[derive(Debug)]
struct Temporary {
    source: LocalSource,
    _dir: TempDir,
}

impl Source for Temporary {
    fn location(&self) -> &str {
        self.source.location()
    }

    fn list(&self) -> smelt_core::Result<Vec<smelt_core::source::FileEntry>> {
        self.source.list()
    }

    fn read_at(&self, path: &str, offset: u64, buf: &mut [u8]) -> smelt_core::Result<()> {
        self.source.read_at(path, offset, buf)
    }
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, bytes) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

#[test]
fn memory_conforms() {
    testing::conformance(|files| Box::new(MemorySource::new(files.iter().copied())));
}

#[test]
fn local_conforms() {
    testing::conformance(|files| {
        let dir = folder(files);
        let source = LocalSource::open(dir.path()).unwrap();
        Box::new(Temporary { source, _dir: dir })
    });
}

#[test]
fn offsets_beyond_four_gib() {
    let dir = folder(&[]);
    let mut file = fs::File::create(dir.path().join("sparse")).unwrap();
    let offset = (5_u64 << 30) + 3;
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.write_all(b"far away").unwrap();
    let source = LocalSource::open(dir.path()).unwrap();
    assert_eq!(source.list().unwrap()[0].size, offset + 8);
    let mut buf = [0; 8];
    source.read_at("sparse", offset, &mut buf).unwrap();
    assert_eq!(&buf, b"far away");
    let result = source.read_at("sparse", offset + 1, &mut buf);
    assert!(matches!(result, Err(Error::Source(SourceError::PastEnd { .. }))), "{result:?}");
}

#[test]
fn missing_directory_and_file_as_directory() {
    let dir = folder(&[("file", b"")]);
    let missing = LocalSource::open(&dir.path().join("nowhere"));
    assert!(matches!(missing, Err(Error::Source(SourceError::Directory { .. }))), "{missing:?}");
    let file = LocalSource::open(&dir.path().join("file"));
    assert!(matches!(file, Err(Error::Source(SourceError::NotADirectory { .. }))), "{file:?}");
}

#[test]
fn a_file_cut_while_it_is_open_is_an_error() {
    let dir = folder(&[("file", b"0123456789")]);
    let source = LocalSource::open(dir.path()).unwrap();
    let mut buf = [0; 10];
    source.read_at("file", 0, &mut buf).unwrap();
    fs::OpenOptions::new().write(true).open(dir.path().join("file")).unwrap().set_len(4).unwrap();
    let result = source.read_at("file", 0, &mut buf);
    assert!(matches!(result, Err(Error::Source(SourceError::PastEnd { size: 4, .. }))), "{result:?}");
}

#[test]
fn folders_of_tools_are_skipped() {
    let dir = folder(&[(".git/config", b""), ("a/.cache/x", b""), ("a/b", b""), (".env", b"")]);
    let listed = LocalSource::open(dir.path()).unwrap().list().unwrap();
    let paths: Vec<_> = listed.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, [".env", "a/b"]);
}

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// The layout of the hub's cache: links into a folder of blobs.
    #[test]
    fn links_are_followed_and_circles_are_not() {
        let blobs = folder(&[("blob", b"weights")]);
        let dir = folder(&[("sub/file", b"")]);
        symlink(blobs.path().join("blob"), dir.path().join("model.safetensors")).unwrap();
        symlink(dir.path(), dir.path().join("sub/circle")).unwrap();
        let source = LocalSource::open(dir.path()).unwrap();
        let listed = source.list().unwrap();
        let files: Vec<_> = listed.iter().map(|file| (file.path.as_str(), file.size)).collect();
        assert_eq!(files, [("model.safetensors", 7), ("sub/file", 0)]);
        let mut buf = [0; 7];
        source.read_at("model.safetensors", 0, &mut buf).unwrap();
        assert_eq!(&buf, b"weights");
    }

    #[test]
    fn a_dangling_link_is_named() {
        let dir = folder(&[]);
        symlink("nowhere", dir.path().join("tokenizer.json")).unwrap();
        let result = LocalSource::open(dir.path()).unwrap().list();
        assert!(result.unwrap_err().to_string().contains("tokenizer.json"));
    }

    /// Other systems refuse to make such a file.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_name_that_is_not_utf8_is_refused() {
        use std::os::unix::ffi::OsStrExt;
        let dir = folder(&[]);
        fs::write(dir.path().join(std::ffi::OsStr::from_bytes(b"bad\xff")), b"").unwrap();
        let result = LocalSource::open(dir.path()).unwrap().list();
        assert!(matches!(result, Err(Error::Source(SourceError::FileName { .. }))), "{result:?}");
    }

    /// Nothing would ever be read from a pipe that nobody writes to.
    #[test]
    fn what_is_no_regular_file_is_neither_listed_nor_opened() {
        let dir = folder(&[]);
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        let source = LocalSource::open(dir.path()).unwrap();
        assert!(source.list().unwrap().is_empty());
        let result = source.read_at("socket", 0, &mut [0]);
        assert!(matches!(result, Err(Error::Source(SourceError::NoSuchFile { .. }))), "{result:?}");
    }

    #[test]
    fn a_read_only_source_is_enough() {
        let dir = folder(&[("file", b"x")]);
        let (file, folder) = (dir.path().join("file"), dir.path());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o555)).unwrap();
        let mut buf = [0];
        LocalSource::open(folder).unwrap().read_at("file", 0, &mut buf).unwrap();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(&buf, b"x");
    }
}
