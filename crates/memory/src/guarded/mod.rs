//! Copies, and work on cache lines, that memory which fails cannot kill.
//!
//! Memory may fail under a load or a store: CXL media that went bad, a file that was cut off, a file
//! system that is full. The kernel then sends SIGBUS, which ends the process. What this crate does
//! to shared memory on its own goes through a few routines in assembly, and returns a [`Fault`]
//! instead.
//!
//! # Why this is sound
//!
//! * The handler (`signal`) acts only if the kernel says that an instruction failed, and that
//!   instruction is one of the routines'. It then changes three registers in the saved state of the
//!   thread, which so goes on at the landing pad, and returns from the routine as if it had come to
//!   its end. No frame is skipped, so nothing that ought to be dropped is not; no mapping is
//!   replaced, so other threads see no other memory than before.
//! * The routines call nothing, use no stack and take no lock, so there is nothing to undo. What was
//!   copied before the fault stays copied, through raw pointers, as the compiler has to expect of
//!   any foreign function.
//! * All state is the thread's own registers. The handler reads one static, set before it was
//!   installed, and calls nothing that is not async-signal-safe; any number of threads may fault at
//!   once.
//! * Every other SIGBUS goes to the handler that was there before.
//!
//! A program that replaces the handler afterwards, without handing on what is not its own, loses
//! this protection, and one that blocks SIGBUS in a thread loses it there: the kernel then ends the
//! process.
#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
#[path = "aarch64.rs"]
mod arch;
#[cfg(target_arch = "x86_64")]
#[path = "x86_64.rs"]
mod arch;
mod signal;

pub(crate) use arch::{STREAM_LEN_MIN, line_instructions};
pub(crate) use signal::install;

/// A SIGBUS that one of the routines met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Which memory failed. Of damaged memory the kernel may tell only the page.
    pub(crate) address: usize,
    /// Whether it is damaged. Otherwise there is none: the file is shorter, or nothing is free.
    pub(crate) damaged: bool,
}

/// What a routine returns, in two registers; after a fault, the handler sets them.
#[repr(C)]
struct Outcome {
    /// 0 if all was done, else the signal's `si_code`.
    code: usize,
    /// The signal's `si_addr`, else undefined.
    address: usize,
}

impl Outcome {
    fn into_result(self) -> Result<(), Fault> {
        let Self { code, address } = self;
        let damaged = code == libc::BUS_MCEERR_AR as usize;
        if code == 0 { Ok(()) } else { Err(Fault { address, damaged }) }
    }
}

/// Copies as fast as memcpy.
///
/// # Safety
/// Both ranges are mapped, and apart; nobody writes `from` or looks at `to` meanwhile. The handler is
/// installed.
pub(crate) unsafe fn copy(to: *mut u8, from: *const u8, len: usize) -> Result<(), Fault> {
    // SAFETY: as the caller promises.
    unsafe { arch::copy(to, from, len) }.into_result()
}

/// Copies so that no cache of this host holds what memory does not have: once it is done, other
/// hosts can read it.
///
/// # Safety
/// As for [`copy`].
pub(crate) unsafe fn copy_through(to: *mut u8, from: *const u8, len: usize) -> Result<(), Fault> {
    // SAFETY: as the caller promises.
    unsafe { arch::copy_through(to, from, len) }
}

/// Writes the lines of a range back to memory, and returns when that is done.
///
/// # Safety
/// The range is mapped. The handler is installed.
pub(crate) unsafe fn write_back(start: *const u8, len: usize) -> Result<(), Fault> {
    if len == 0 {
        return Ok(());
    }
    // SAFETY: as the caller promises.
    unsafe { arch::write_back(start, len) }.into_result()
}

/// Takes the lines of a range out of this host's caches: later loads see memory. Dirty ones are
/// written back.
///
/// # Safety
/// As for [`write_back`].
pub(crate) unsafe fn invalidate(start: *const u8, len: usize) -> Result<(), Fault> {
    if len == 0 {
        return Ok(());
    }
    // SAFETY: as the caller promises.
    unsafe { arch::invalidate(start, len) }.into_result()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn damage_is_told_from_absence() {
        let result =
            |code: i32| Outcome { code: code.cast_unsigned() as usize, address: 64 }.into_result();
        assert_eq!(result(0), Ok(()));
        for (code, damaged) in [(libc::BUS_ADRERR, false), (libc::BUS_MCEERR_AR, true)] {
            assert_eq!(result(code), Err(Fault { address: 64, damaged }));
        }
    }

    type Copy = unsafe fn(*mut u8, *const u8, usize) -> Result<(), Fault>;

    proptest! {
        /// Any length from any place to any place, and nothing beside it.
        #[test]
        fn copies_agree_with_memcpy(
            from in vec(any::<u8>(), 1200),
            old in vec(any::<u8>(), 1200),
            starts in (0_usize..130, 0_usize..130),
            len in prop_oneof![0_usize..200, 0_usize..1000],
        ) {
            let (from, to) = (&from[starts.0..starts.0 + len], starts.1..starts.1 + len);
            let mut expected = old.clone();
            expected[to.clone()].copy_from_slice(from);
            for copy in [copy as Copy, copy_through as Copy] {
                let mut found = old.clone();
                // SAFETY: two slices of this length; no memory of this process fails, so nothing
                // depends on the handler.
                let result = unsafe { copy(found[to.clone()].as_mut_ptr(), from.as_ptr(), len) };
                prop_assert_eq!(result, Ok(()));
                prop_assert_eq!(&found, &expected);
            }
        }

        #[test]
        fn work_on_lines_changes_no_byte(bytes in vec(any::<u8>(), 1..1000), start: usize) {
            let start = start % bytes.len();
            let found = bytes.clone();
            for work in [write_back, invalidate] {
                // SAFETY: a part of a slice; as above.
                let result = unsafe { work(found[start..].as_ptr(), found.len() - start) };
                prop_assert_eq!(result, Ok(()));
            }
            prop_assert_eq!(found, bytes);
        }
    }
}
