//! A SQLite VFS over the default one that tells a [`Disk`] what SQLite writes, truncates, syncs and removes, and stops
//! doing so when that has lost its power. Files outside of the mounted folders go straight to the default VFS.
//!
//! The files themselves are real, so that locks and shared memory are the ones of production; what would be left of them after a
//! power loss is what the disk in memory says.

// SQLite's interface for file systems is one of raw pointers. Every pointer here is used as SQLite's documentation of
// `sqlite3_vfs` and `sqlite3_io_methods` promises it: valid during the call, and a file's until its `xClose`.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use rusqlite::ffi;

use crate::db::log_store::{Disk, LogFile, Storage};

/// The disks under the folders.
static MOUNTED: Mutex<BTreeMap<PathBuf, Disk>> = Mutex::new(BTreeMap::new());

/// Puts `disk` under all SQLite files in `folder`, an absolute path without links.
pub(crate) fn mount(folder: &Path, disk: &Disk) {
    install();
    MOUNTED.lock().unwrap().insert(folder.to_owned(), disk.clone());
}

/// Takes it away again.
pub(crate) fn unmount(folder: &Path) {
    MOUNTED.lock().unwrap().remove(folder);
}

/// The disk under a file, and the name that the file has on it.
pub(crate) fn disk_under(path: &Path) -> Option<(Disk, String)> {
    let disk = MOUNTED.lock().unwrap().get(path.parent()?)?.clone();
    Some((disk, path.file_name()?.to_str()?.to_owned()))
}

/// The disk under a folder.
pub(crate) fn disk_in(folder: &Path) -> Option<Disk> {
    MOUNTED.lock().unwrap().get(folder).cloned()
}

/// A file as SQLite sees it. That of the default VFS comes right behind it, in memory that SQLite owns.
#[repr(C)]
struct File {
    base: ffi::sqlite3_file,
    record: Option<Box<Record>>,
}

/// The same file on the disk in memory.
struct Record {
    disk: Disk,
    file: Arc<dyn LogFile>,
    /// SQLite syncs the folder with the first sync of a journal that it has created.
    syncs_folder: bool,
}

/// The default VFS as it was. Only its address: the struct is SQLite's and lives as long as the process.
fn underneath() -> *mut ffi::sqlite3_vfs {
    static UNDERNEATH: OnceLock<usize> = OnceLock::new();
    *UNDERNEATH.get_or_init(|| {
        let default = unsafe { ffi::sqlite3_vfs_find(std::ptr::null()) };
        assert!(!default.is_null());
        default as usize
    }) as *mut ffi::sqlite3_vfs
}

/// Makes this the default VFS of the test's process.
fn install() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        let default = underneath();
        let mut vfs = unsafe { *default };
        vfs.szOsFile += size_of::<File>() as c_int;
        vfs.pNext = std::ptr::null_mut();
        vfs.zName = c"power-loss".as_ptr();
        vfs.xOpen = Some(open);
        vfs.xDelete = Some(delete);
        let vfs = Box::leak(Box::new(vfs));
        assert_eq!(unsafe { ffi::sqlite3_vfs_register(vfs, 1) }, ffi::SQLITE_OK);
    });
}

fn inner(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    unsafe { file.cast::<u8>().add(size_of::<File>()) }.cast()
}

fn record<'a>(file: *mut ffi::sqlite3_file) -> &'a mut Record {
    let file: *mut File = file.cast();
    unsafe { (*file).record.as_deref_mut() }.unwrap()
}

fn path<'a>(name: *const c_char) -> Option<&'a Path> {
    let name = (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) })?;
    Some(Path::new(OsStr::from_bytes(name.to_bytes())))
}

unsafe extern "C" fn open(
    _: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    let default = underneath();
    let open = unsafe { (*default).xOpen }.unwrap();
    let Some((disk, short)) = path(name).and_then(disk_under) else {
        return unsafe { open(default, name, file, flags, out) };
    };
    unsafe { (*file).pMethods = std::ptr::null() };
    let is_new = !path(name).is_some_and(Path::exists);
    if is_new && flags & ffi::SQLITE_OPEN_CREATE == 0 {
        return ffi::SQLITE_CANTOPEN;
    }
    let Ok(found) = on_disk(&disk, &short, path(name).filter(|_| !is_new)) else { return ffi::SQLITE_IOERR };
    let code = unsafe { open(default, name, inner(file), flags, out) };
    if code == ffi::SQLITE_OK {
        let journals = ffi::SQLITE_OPEN_WAL | ffi::SQLITE_OPEN_MAIN_JOURNAL;
        let record = Record { disk, file: found, syncs_folder: is_new && flags & journals != 0 };
        let base = ffi::sqlite3_file { pMethods: &raw const METHODS };
        unsafe { file.cast::<File>().write(File { base, record: Some(Box::new(record)) }) };
    }
    code
}

/// The file on the disk in memory. One that somebody else has put into the folder is taken over, with nothing of it safe.
fn on_disk(disk: &Disk, name: &str, existing: Option<&Path>) -> std::io::Result<Arc<dyn LogFile>> {
    if disk.names().iter().any(|known| known == name) {
        return disk.open(name);
    }
    let file = disk.create(name)?;
    if let Some(path) = existing {
        file.write_at(&std::fs::read(path)?, 0)?;
    }
    Ok(file)
}

unsafe extern "C" fn delete(_: *mut ffi::sqlite3_vfs, name: *const c_char, sync_folder: c_int) -> c_int {
    let default = underneath();
    let delete = unsafe { (*default).xDelete }.unwrap();
    let Some((disk, short)) = path(name).and_then(disk_under) else {
        return unsafe { delete(default, name, sync_folder) };
    };
    match disk.remove(&short) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return ffi::SQLITE_IOERR_DELETE,
        _ => {}
    }
    let code = unsafe { delete(default, name, 0) };
    if code == ffi::SQLITE_OK && sync_folder != 0 && disk.sync_dir().is_err() {
        return ffi::SQLITE_IOERR_DIR_FSYNC;
    }
    code
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    let own: *mut File = file.cast();
    drop(unsafe { (*own).record.take() });
    let code = unsafe { (*(*inner(file)).pMethods).xClose.unwrap()(inner(file)) };
    unsafe { (*file).pMethods = std::ptr::null() };
    code
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, bytes: *const c_void, count: c_int, offset: i64) -> c_int {
    let written = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), count as usize) };
    if record(file).file.write_at(written, offset as u64).is_err() {
        return ffi::SQLITE_IOERR_WRITE;
    }
    unsafe { (*(*inner(file)).pMethods).xWrite.unwrap()(inner(file), bytes, count, offset) }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    if record(file).file.set_len(size as u64).is_err() {
        return ffi::SQLITE_IOERR_TRUNCATE;
    }
    unsafe { (*(*inner(file)).pMethods).xTruncate.unwrap()(inner(file), size) }
}

/// On the disk in memory alone: a real sync would only take time.
unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    let record = record(file);
    if record.file.sync().is_err() {
        return ffi::SQLITE_IOERR_FSYNC;
    }
    if std::mem::take(&mut record.syncs_folder) && record.disk.sync_dir().is_err() {
        return ffi::SQLITE_IOERR_DIR_FSYNC;
    }
    ffi::SQLITE_OK
}

/// A method that goes to the default VFS as it is.
macro_rules! forward {
    ($name:ident, $method:ident ( $($argument:ident: $kind:ty),* )) => {
        unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file $(, $argument: $kind)*) -> c_int {
            unsafe { (*(*inner(file)).pMethods).$method.unwrap()(inner(file) $(, $argument)*) }
        }
    };
}

forward!(read, xRead(bytes: *mut c_void, count: c_int, offset: i64));
forward!(file_size, xFileSize(size: *mut i64));
forward!(lock, xLock(level: c_int));
forward!(unlock, xUnlock(level: c_int));
forward!(check_reserved_lock, xCheckReservedLock(out: *mut c_int));
forward!(file_control, xFileControl(operation: c_int, argument: *mut c_void));
forward!(sector_size, xSectorSize());
forward!(device_characteristics, xDeviceCharacteristics());
forward!(shm_map, xShmMap(page: c_int, page_bytes: c_int, extend: c_int, out: *mut *mut c_void));
forward!(shm_lock, xShmLock(offset: c_int, count: c_int, flags: c_int));
forward!(shm_unmap, xShmUnmap(delete: c_int));

unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    unsafe { (*(*inner(file)).pMethods).xShmBarrier.unwrap()(inner(file)) }
}

/// Version 2: no memory-mapped access, which nobody would see.
static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};
