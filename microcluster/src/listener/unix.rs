//! The control socket: its file, its mode, its group.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio::net::UnixListener;

/// Owner and group may connect, nobody else.
const MODE: u32 = 0o660;
/// Longest path of a socket on the systems this runs on, without the ending zero.
const PATH_MAX: usize = 107;

/// A group cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GroupError {
    #[error("there is no group {group:?} in /etc/group")]
    Unknown { group: String },
    #[error("cannot read /etc/group")]
    Io(#[source] io::Error),
}

/// The number of a group, given by name or number.
pub(crate) fn group_id(group: &str) -> Result<u32, GroupError> {
    if let Ok(id) = group.parse() {
        return Ok(id);
    }
    let groups = fs::read_to_string("/etc/group").map_err(GroupError::Io)?;
    find_group(&groups, group).ok_or_else(|| GroupError::Unknown { group: group.into() })
}

/// Binds the socket. The caller holds the lock of the directory, so a file that is there is a leftover. The
/// socket appears under its name with its mode and group set: nobody can connect before.
pub(super) fn bind(path: &Path, group: Option<u32>) -> io::Result<UnixListener> {
    let temporary = path.with_extension("new");
    if temporary.as_os_str().len().max(path.as_os_str().len()) > PATH_MAX {
        let long = format!(
            "the path has more than {PATH_MAX} bytes, which is the most for a socket; use a shorter state directory"
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, long));
    }
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary)?;
    if let Some(group) = group {
        std::os::unix::fs::chown(&temporary, None, Some(group))?;
    }
    fs::set_permissions(&temporary, Permissions::from_mode(MODE))?;
    fs::rename(&temporary, path)?;
    Ok(listener)
}

/// Finds a group in a text with lines `name:password:number:members`.
fn find_group(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_name_and_number() {
        let groups = "root:x:0:\nadm:x:4:syslog,me\nbroken\nmicro:x:1042:";
        assert_eq!(find_group(groups, "micro"), Some(1042));
        assert_eq!(find_group(groups, "broken"), None);
        assert_eq!(find_group(groups, "mic"), None);
        assert_eq!(group_id("77").unwrap(), 77);
        assert!(group_id("no such group").unwrap_err().to_string().contains("no such group"));
    }

    #[tokio::test]
    async fn the_socket_replaces_a_leftover_and_has_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.socket");
        fs::write(&path, "left over").unwrap();
        let _listener = bind(&path, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        tokio::net::UnixStream::connect(&path).await.unwrap();
    }

    #[tokio::test]
    async fn a_path_that_is_too_long_is_explained() {
        let path = Path::new("/tmp").join("x".repeat(120)).join("control.socket");
        assert!(bind(&path, None).unwrap_err().to_string().contains("shorter"));
    }
}
