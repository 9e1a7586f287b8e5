//! The code of the program and its libraries, as it is mapped.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bits of an entry of `/proc/self/pagemap`: the page is of a file, it is swapped out, it is there.
const FILE: u64 = 1 << 61;
const SWAPPED: u64 = 1 << 62;
const PRESENT: u64 = 1 << 63;

/// Unmaps it, page by page, but for parts in which a page differs from its file: a debugger has set a breakpoint there.
pub(super) fn give_back() {
    // Without this file, as in a sandbox, the code stays where it is.
    let Ok(pagemap) = File::open("/proc/self/pagemap") else { return };
    // SAFETY: `each` is called before this returns, with the file that it expects. Meanwhile the C library loads and unloads nothing.
    unsafe {
        libc::dl_iterate_phdr(Some(each), (&raw const pagemap).cast_mut().cast());
    }
}

/// Called for the program and for each of its libraries.
unsafe extern "C" fn each(object: *mut libc::dl_phdr_info, _size: usize, pagemap: *mut c_void) -> i32 {
    // SAFETY: the C library says where it is; the file is the one of above.
    let (object, pagemap) = unsafe { (&*object, &*pagemap.cast::<File>()) };
    if object.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: it has so many segments.
    let segments = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)) };
    // SAFETY: it only answers.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(usize::MAX);
    for segment in segments {
        let is_code = segment.p_type == libc::PT_LOAD && segment.p_flags & (libc::PF_X | libc::PF_W) == libc::PF_X;
        let from = (object.dlpi_addr as usize).wrapping_add(segment.p_vaddr as usize);
        // Whole pages alone: what is beside it is not code.
        let (first, end) = (from.div_ceil(page), (from + segment.p_memsz as usize) / page);
        if is_code && first < end && is_as_in_its_file(pagemap, first, end - first) {
            // SAFETY: these pages are mapped from the object's file, or are the kernel's own, and nobody writes to them: they are mapped again.
            unsafe {
                libc::madvise((first * page) as *mut c_void, (end - first) * page, libc::MADV_DONTNEED);
            }
        }
    }
    0
}

fn is_as_in_its_file(pagemap: &File, first: usize, pages: usize) -> bool {
    let mut entries = vec![0; pages * size_of::<u64>()];
    let read = pagemap.read_exact_at(&mut entries, (first * size_of::<u64>()) as u64);
    let (entries, _) = entries.as_chunks();
    read.is_ok() && entries.iter().all(|entry| is_of_a_file(u64::from_ne_bytes(*entry)))
}

fn is_of_a_file(entry: u64) -> bool {
    entry & SWAPPED == 0 && (entry & PRESENT == 0 || entry & FILE != 0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_differs_from_its_file_is_known() {
        assert!([0, PRESENT | FILE, PRESENT | FILE | 77].into_iter().all(is_of_a_file));
        assert!(![PRESENT, PRESENT | 77, SWAPPED, SWAPPED | FILE].into_iter().any(is_of_a_file));
    }

    /// In KiB.
    fn resident_code() -> u64 {
        let program = std::env::current_exe().unwrap();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = smaps.lines();
        lines.find(|line| line.contains(" r-xp ") && line.ends_with(program.to_str().unwrap())).unwrap();
        let size = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        size.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn code_that_does_not_run_is_not_resident() {
        // Others that run meanwhile bring theirs back.
        let gives_back = || {
            let before = resident_code();
            give_back();
            resident_code() < before
        };
        assert!((0..100).any(|_| gives_back()));
    }
}
