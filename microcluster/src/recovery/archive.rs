//! The files of a recovery: the backup of a database, and the archive by which other members follow. Both are streamed.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use microcluster_client::{Fingerprint, Name, Timestamp};
use serde::{Deserialize, Serialize};

use super::LogPosition;
use crate::cluster::RaftMember;
use crate::db::recovery::RecoveryMark;
use crate::state_dir::{FileError, MODE_SECRET, StateDir, failed, sync_directory};

/// The version of the archive; another one is refused.
pub(super) const FORMAT: u32 = 2;
const META: &str = "recovery.json";
const STATE: &str = "state.db";
/// The most that the description may take: some ten thousand members.
const META_BYTES_MAX: u64 = 4 << 20;
/// What may follow the last file: the padding of a tape.
const PADDING_BYTES_MAX: u64 = 1 << 20;
/// What is left free on the disk beside what is unpacked.
const SPARE_BYTES: u64 = 16 << 20;

/// What an archive says of itself; its first file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    pub format: u32,
    /// The member that the cluster was recovered on.
    pub made_by: Name,
    pub made_by_fingerprint: Fingerprint,
    pub made_at: Timestamp,
    /// Which recovery it is of.
    pub recovery: RecoveryMark,
    /// The last entry before it.
    pub log_before: LogPosition,
    pub members: Vec<RaftMember>,
    /// The size of the state file.
    pub state_bytes: u64,
}

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("it is damaged or not complete: {reason}")]
    Damaged { reason: String },
    #[error("it has the format {found}, this version knows {FORMAT}; use the version that has made it")]
    Format { found: u64 },
    #[error("it holds {needed} bytes, and {free} are free on the disk")]
    NoSpace { needed: u64, free: u64 },
    #[error(transparent)]
    File(#[from] FileError),
}

/// Copies the database and the configuration of a member into an archive beside them, and says where it is.
pub(super) fn back_up(dir: &StateDir) -> Result<PathBuf, FileError> {
    let now = Timestamp::from_unix_seconds(Timestamp::now().unix_seconds()).unwrap_or(Timestamp::ZERO);
    // With a colon it would be a file on another machine for tar.
    let time = now.to_string().replace(':', "");
    let name = |number: u32| match number {
        0 => dir.backup(&time),
        number => dir.backup(&format!("{time}-{number}")),
    };
    let free = (0..).map(name).find(|path| !path.exists());
    // There are more numbers than files in a folder.
    let path = free.unwrap_or_else(|| name(0));
    pack(&path, |tar| {
        tar.append_path_with_name(dir.daemon_config(), "daemon.yaml")?;
        if dir.database().exists() {
            tar.append_dir_all("database", dir.database())?;
        }
        Ok(())
    })?;
    Ok(path)
}

/// Writes the archive of a state file.
pub(super) fn write(state: &Path, meta: Meta, to: &Path) -> Result<(), FileError> {
    pack(to, |tar| {
        let mut file = File::open(state)?;
        let meta = Meta { state_bytes: file.metadata()?.len(), ..meta };
        let text = serde_json::to_vec_pretty(&meta)?;
        tar.append_data(&mut header(text.len() as u64), META, text.as_slice())?;
        tar.append_data(&mut header(meta.state_bytes), STATE, &mut file)
    })
}

/// Reads what an archive says of itself.
pub(super) fn read_meta(path: &Path) -> Result<Meta, ReadError> {
    unpack(path, None)
}

/// Reads an archive to its end, and writes its state into a file that is there.
pub(super) fn read(path: &Path, state: &Path) -> Result<Meta, ReadError> {
    unpack(path, Some(state))
}

fn unpack(path: &Path, state: Option<&Path>) -> Result<Meta, ReadError> {
    let file = File::open(path).map_err(failed("open", path))?;
    let mut tar = tar::Archive::new(GzDecoder::new(BufReader::new(file)));
    let mut entries = tar.entries().map_err(damaged)?;
    let mut next = |name: &str| -> Result<tar::Entry<'_, _>, ReadError> {
        let entry = entries.next().ok_or_else(|| missing(name))?.map_err(damaged)?;
        let is_it = entry.path().is_ok_and(|path| path == Path::new(name)) && entry.header().entry_type().is_file();
        if is_it { Ok(entry) } else { Err(missing(name)) }
    };
    let mut text = Vec::new();
    next(META)?.take(META_BYTES_MAX).read_to_end(&mut text).map_err(damaged)?;
    let meta = parse(&text)?;
    let Some(state) = state else { return Ok(meta) };
    let mut entry = next(STATE)?;
    if entry.size() != meta.state_bytes {
        return Err(ReadError::Damaged { reason: format!("{STATE} has another size than {META} says") });
    }
    let folder = state.parent().unwrap_or(state);
    let disk = rustix::fs::statvfs(folder).map_err(|e| failed("look at the disk of", folder)(e.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < meta.state_bytes.saturating_add(SPARE_BYTES) {
        return Err(ReadError::NoSpace { needed: meta.state_bytes, free });
    }
    copy(&mut entry, state)?;
    if entries.next().is_some() {
        return Err(ReadError::Damaged { reason: format!("there is something behind {STATE}") });
    }
    // The checksum is at the very end.
    let mut rest = tar.into_inner().take(PADDING_BYTES_MAX);
    io::copy(&mut rest, &mut io::sink()).map_err(damaged)?;
    if rest.limit() == 0 {
        return Err(ReadError::Damaged { reason: "it does not end where it should".to_owned() });
    }
    Ok(meta)
}

fn parse(text: &[u8]) -> Result<Meta, ReadError> {
    let malformed = |e: serde_json::Error| ReadError::Damaged { reason: format!("{META}: {e}") };
    /// The one field that all formats have.
    #[derive(Deserialize)]
    struct Version {
        format: u64,
    }
    let Version { format } = serde_json::from_slice(text).map_err(malformed)?;
    if format != u64::from(FORMAT) {
        return Err(ReadError::Format { found: format });
    }
    serde_json::from_slice(text).map_err(malformed)
}

/// Reading fails with the archive, writing with the disk.
fn copy(from: &mut impl Read, to: &Path) -> Result<(), ReadError> {
    let mut file = OpenOptions::new().write(true).truncate(true).open(to).map_err(failed("write", to))?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match from.read(&mut buffer).map_err(damaged)? {
            0 => break,
            read => file.write_all(&buffer[..read]).map_err(failed("write", to))?,
        }
    }
    Ok(file.sync_all().map_err(failed("sync", to))?)
}

/// Makes a compressed archive that is there completely, or not at all.
fn pack(
    path: &Path,
    fill: impl FnOnce(&mut tar::Builder<GzEncoder<BufWriter<File>>>) -> io::Result<()>,
) -> Result<(), FileError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // A name that the next start removes, should this one not get to its end.
    let temporary = path.with_file_name(format!(".{name}.new"));
    let write = || {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(MODE_SECRET).open(&temporary)?;
        let mut tar = tar::Builder::new(GzEncoder::new(BufWriter::new(file), Compression::fast()));
        tar.follow_symlinks(false);
        fill(&mut tar)?;
        let file = tar.into_inner()?.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(failed("write", path)).inspect_err(|_| {
        // What is left of it is of no use.
        let _ = std::fs::remove_file(&temporary);
    })?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}

fn header(bytes: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(MODE_SECRET);
    header
}

fn damaged(error: io::Error) -> ReadError {
    ReadError::Damaged { reason: error.to_string() }
}

fn missing(name: &str) -> ReadError {
    ReadError::Damaged { reason: format!("{name} is not where it should be") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use microcluster_client::Role;
    use proptest::prelude::*;

    use super::*;
    use crate::fuzz::{almost, cases};

    fn meta() -> Meta {
        let member = |id: u64| RaftMember {
            id,
            name: format!("c{id}").parse().unwrap(),
            address: format!("10.0.0.{id}:9000").parse().unwrap(),
            role: Role::Voter,
        };
        Meta {
            format: FORMAT,
            made_by: "c1".parse().unwrap(),
            made_by_fingerprint: Fingerprint::of_der(b"c1"),
            made_at: Timestamp::from_unix_seconds(1_800_000_000).unwrap(),
            recovery: RecoveryMark { term: 1_000_000_000, node: 1, index: 23, nonce: u64::MAX },
            log_before: LogPosition { term: 4, index: 22 },
            members: vec![member(1), member(2)],
            state_bytes: 0,
        }
    }

    /// An archive, and a file to unpack a state into.
    fn written(content: &[u8], meta: Meta) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (state, archive, target) = (dir.path().join("s"), dir.path().join("a"), dir.path().join("t"));
        std::fs::write(&state, content).unwrap();
        std::fs::write(&target, "").unwrap();
        write(&state, meta, &archive).unwrap();
        (dir, archive, target)
    }

    fn packed(fill: impl FnOnce(&mut tar::Builder<GzEncoder<BufWriter<File>>>)) -> (tempfile::TempDir, String) {
        let (dir, archive, target) = written(b"x", meta());
        pack(&archive, |tar| {
            fill(tar);
            Ok(())
        })
        .unwrap();
        let error = read(&archive, &target).unwrap_err().to_string();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "nothing else was written");
        (dir, error)
    }

    fn put(tar: &mut tar::Builder<GzEncoder<BufWriter<File>>>, name: &str, content: &[u8]) {
        let mut header = header(content.len() as u64);
        // As it stands: the builder itself refuses such names.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, content).unwrap();
    }

    #[test]
    fn what_was_written_is_read() {
        use std::os::unix::fs::PermissionsExt;
        let content: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let (_dir, archive, target) = written(&content, meta());
        assert_eq!(std::fs::metadata(&archive).unwrap().permissions().mode() & 0o777, MODE_SECRET);
        let expected = Meta { state_bytes: content.len() as u64, ..meta() };
        assert_eq!(read_meta(&archive).unwrap(), expected);
        assert_eq!(read(&archive, &target).unwrap(), expected);
        assert!(std::fs::read(target).unwrap() == content);
    }

    #[test]
    fn another_format_is_named() {
        let (_dir, archive, _) = written(b"x", Meta { format: 3, ..meta() });
        let said = read_meta(&archive).unwrap_err().to_string();
        assert!(said.contains("format 3, this version knows 2"), "{said}");
    }

    #[test]
    fn only_the_two_files_are_taken() {
        let text = |bytes| serde_json::to_vec(&Meta { state_bytes: bytes, ..meta() }).unwrap();
        let (_dir, said) = packed(|tar| put(tar, "../escape", b"x"));
        assert!(said.contains("recovery.json is not where it should be"), "{said}");
        let (_dir, said) = packed(|tar| {
            put(tar, META, &text(1));
            put(tar, "/tmp/escape", b"x");
        });
        assert!(said.contains("state.db is not where it should be"), "{said}");
        let (_dir, said) = packed(|tar| {
            put(tar, META, &text(9));
            put(tar, STATE, b"x");
        });
        assert!(said.contains("another size"), "{said}");
        let (_dir, said) = packed(|tar| {
            put(tar, META, &text(1));
            put(tar, STATE, b"x");
            put(tar, "more", b"x");
        });
        assert!(said.contains("something behind state.db"), "{said}");
        let (_dir, said) = packed(|tar| put(tar, META, &text(1)));
        assert!(said.contains("state.db is not where it should be"), "{said}");
    }

    proptest! {
        #![proptest_config(cases(128))]

        #[test]
        fn a_damaged_archive_is_refused(change in any::<(prop::sample::Index, u8)>(), cut in any::<bool>()) {
            let content: Vec<u8> = (0..3_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
            let (_dir, archive, target) = written(&content, meta());
            let mut bytes = std::fs::read(&archive).unwrap();
            let at = change.0.index(bytes.len());
            if cut {
                bytes.truncate(at);
            } else {
                bytes[at] ^= change.1 | 1;
            }
            std::fs::write(&archive, &bytes).unwrap();
            // The header of gzip has bytes that mean nothing, and the same zeros can be copied from here or from there.
            if let Ok(found) = read(&archive, &target) {
                prop_assert_eq!(found, Meta { state_bytes: content.len() as u64, ..meta() });
                prop_assert!(std::fs::read(target).unwrap() == content, "byte {} of {}", at, bytes.len());
            }
        }

        #[test]
        fn any_description_is_read_or_refused(
            text in almost(Just(()).prop_map(|()| serde_json::to_vec(&meta()).unwrap())),
        ) {
            let _ = parse(&text);
        }
    }
}
