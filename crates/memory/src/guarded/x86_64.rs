//! The routines for x86-64, and which of them this processor has.

use std::arch::global_asm;
use std::arch::x86_64::{__cpuid_count, __get_cpuid_max, _mm256_zeroupper};
use std::ops::Range;
use std::sync::OnceLock;

use libc::{REG_RAX, REG_RDX, REG_RIP, ucontext_t};

use super::{Fault, Outcome};
use crate::LineInstructions;

/// From so many bytes on, a copy around the caches is faster, and nothing is lost by it even if the
/// page is read back at once (see docs/performance.md).
pub(crate) const STREAM_LEN_MIN: usize = 256 << 10;

const LINE: usize = 64;

// None uses the stack, so each can be left from anywhere by a plain return: the landing pad. The
// fence there is for the non-temporal stores that came before the fault.
//
// `rep movsb` alone is for processors without AVX: on some it is several times slower if the two
// ends are not aligned alike. A prefetch never faults, whatever is there.
global_asm!(
    r#"
    .pushsection .text.maru_memory_guarded, "ax", @progbits

    .macro maru_memory_enter name
        .p2align 4
        .globl maru_memory_\name
        .hidden maru_memory_\name
        .type maru_memory_\name, @function
    maru_memory_\name:
        .cfi_startproc
    .endm

    .macro maru_memory_leave name
        ret
        .cfi_endproc
        .size maru_memory_\name, . - maru_memory_\name
    .endm

    .macro maru_memory_flush instruction
        maru_memory_enter \instruction
        mfence
    2:  \instruction byte ptr [rdi]
        add rdi, 64
        cmp rdi, rsi
        jb 2b
        mfence
        xor eax, eax
        maru_memory_leave \instruction
    .endm

    .globl maru_memory_guarded
    .hidden maru_memory_guarded
maru_memory_guarded:

    maru_memory_enter copy_avx
        mov rcx, rdx
        shr rcx, 7
        jz 3f
    2:  vmovups ymm0, [rsi]
        vmovups ymm1, [rsi + 32]
        vmovups ymm2, [rsi + 64]
        vmovups ymm3, [rsi + 96]
        vmovups [rdi], ymm0
        vmovups [rdi + 32], ymm1
        vmovups [rdi + 64], ymm2
        vmovups [rdi + 96], ymm3
        sub rsi, -128
        sub rdi, -128
        dec rcx
        jnz 2b
    3:  mov ecx, edx
        and ecx, 127
        rep movsb
        xor eax, eax
    maru_memory_leave copy_avx

    maru_memory_enter copy
        mov rcx, rdx
        rep movsb
        xor eax, eax
    maru_memory_leave copy

    maru_memory_enter stream
        shr rdx, 6
        jz 3f
    2:  prefetchnta [rsi + 512]
        movups xmm0, [rsi]
        movups xmm1, [rsi + 16]
        movups xmm2, [rsi + 32]
        movups xmm3, [rsi + 48]
        movntps [rdi], xmm0
        movntps [rdi + 16], xmm1
        movntps [rdi + 32], xmm2
        movntps [rdi + 48], xmm3
        add rsi, 64
        add rdi, 64
        dec rdx
        jnz 2b
    3:  sfence
        xor eax, eax
    maru_memory_leave stream

    maru_memory_flush clwb
    maru_memory_flush clflushopt
    maru_memory_flush clflush

    .globl maru_memory_guarded_end
    .hidden maru_memory_guarded_end
maru_memory_guarded_end:

    maru_memory_enter landing
        sfence
    maru_memory_leave landing

    .purgem maru_memory_enter
    .purgem maru_memory_leave
    .purgem maru_memory_flush
    .popsection
    "#
);

unsafe extern "C" {
    static maru_memory_guarded: u8;
    static maru_memory_guarded_end: u8;
    static maru_memory_landing: u8;

    fn maru_memory_copy_avx(to: *mut u8, from: *const u8, len: usize) -> Outcome;
    fn maru_memory_copy(to: *mut u8, from: *const u8, len: usize) -> Outcome;
    fn maru_memory_stream(to: *mut u8, from: *const u8, len: usize) -> Outcome;
    fn maru_memory_clwb(line: *const u8, end: *const u8) -> Outcome;
    fn maru_memory_clflushopt(line: *const u8, end: *const u8) -> Outcome;
    fn maru_memory_clflush(line: *const u8, end: *const u8) -> Outcome;
}

/// An instruction that acts on one cache line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    Clwb,
    ClflushOpt,
    Clflush,
}

/// What this processor has beside `clflush`, which all have.
#[derive(Clone, Copy, Debug)]
struct Features {
    clwb: bool,
    clflushopt: bool,
}

impl Features {
    /// Asks once: CPUID leaves a virtual machine, which takes long.
    fn of_this_processor() -> Self {
        static FEATURES: OnceLock<Features> = OnceLock::new();
        *FEATURES.get_or_init(|| {
            let leaves = __get_cpuid_max(0).0;
            let ebx = if leaves < 7 { 0 } else { __cpuid_count(7, 0).ebx };
            Self { clwb: ebx & 1 << 24 != 0, clflushopt: ebx & 1 << 23 != 0 }
        })
    }

    fn for_write_back(self) -> Flush {
        if self.clwb { Flush::Clwb } else { self.for_invalidation() }
    }

    /// Not `clwb`, which may leave the line where it is.
    fn for_invalidation(self) -> Flush {
        if self.clflushopt { Flush::ClflushOpt } else { Flush::Clflush }
    }
}

impl Flush {
    const fn name(self) -> &'static str {
        match self {
            Self::Clwb => "clwb",
            Self::ClflushOpt => "clflushopt",
            Self::Clflush => "clflush",
        }
    }

    /// # Safety
    /// As for `super::write_back`; this processor has the instruction.
    unsafe fn lines(self, start: *const u8, len: usize) -> Outcome {
        let first = start.map_addr(|address| address / LINE * LINE);
        let routine = match self {
            Self::Clwb => maru_memory_clwb,
            Self::ClflushOpt => maru_memory_clflushopt,
            Self::Clflush => maru_memory_clflush,
        };
        // SAFETY: as the caller promises; no line straddles two pages of memory.
        unsafe { routine(first, start.wrapping_add(len)) }
    }
}

pub(crate) fn line_instructions() -> LineInstructions {
    let features = Features::of_this_processor();
    LineInstructions {
        write_back: features.for_write_back().name(),
        invalidate: features.for_invalidation().name(),
    }
}

/// # Safety
/// As for `super::copy`.
pub(super) unsafe fn copy(to: *mut u8, from: *const u8, len: usize) -> Outcome {
    if is_x86_feature_detected!("avx") {
        // SAFETY: as the caller promises; the processor has AVX.
        unsafe {
            let outcome = maru_memory_copy_avx(to, from, len);
            // Not in the routine, which a fault leaves anywhere.
            _mm256_zeroupper();
            outcome
        }
    } else {
        // SAFETY: as the caller promises.
        unsafe { maru_memory_copy(to, from, len) }
    }
}

/// Whole lines by non-temporal stores, which also drop what a cache has of them; what is left at
/// the ends by ordinary ones, written back.
///
/// # Safety
/// As for `super::copy`.
pub(super) unsafe fn copy_through(to: *mut u8, from: *const u8, len: usize) -> Result<(), Fault> {
    let head = to.align_offset(LINE).min(len);
    let lines = (len - head) / LINE * LINE;
    let tail = head + lines;
    // SAFETY: parts of what the caller promises, from first to last, so that the first byte that
    // fails is told; the middle starts at a line and has whole ones.
    unsafe {
        copy_end(to, from, head)?;
        maru_memory_stream(to.add(head), from.add(head), lines).into_result()?;
        copy_end(to.add(tail), from.add(tail), len - tail)
    }
}

/// # Safety
/// As for `super::copy`.
unsafe fn copy_end(to: *mut u8, from: *const u8, len: usize) -> Result<(), Fault> {
    // SAFETY: as the caller promises.
    unsafe {
        super::copy(to, from, len)?;
        super::write_back(to, len)
    }
}

/// # Safety
/// As for `super::write_back`.
pub(super) unsafe fn write_back(start: *const u8, len: usize) -> Outcome {
    // SAFETY: as the caller promises; the processor was asked.
    unsafe { Features::of_this_processor().for_write_back().lines(start, len) }
}

/// # Safety
/// As for `super::invalidate`.
pub(super) unsafe fn invalidate(start: *const u8, len: usize) -> Outcome {
    // SAFETY: as the caller promises; the processor was asked.
    unsafe { Features::of_this_processor().for_invalidation().lines(start, len) }
}

/// The addresses of the routines' instructions.
pub(super) fn routines() -> Range<u64> {
    let bounds = [&raw const maru_memory_guarded, &raw const maru_memory_guarded_end];
    let [start, end] = bounds.map(|bound| bound.addr() as u64);
    start..end
}

/// Where the thread was.
pub(super) fn instruction(context: &ucontext_t) -> u64 {
    context.uc_mcontext.gregs[REG_RIP as usize].cast_unsigned()
}

/// Lets the thread go on at the landing pad, with `outcome` as the routine's result.
pub(super) fn land(context: &mut ucontext_t, outcome: &Outcome) {
    let registers = &mut context.uc_mcontext.gregs;
    let value = |value: usize| (value as u64).cast_signed();
    registers[REG_RIP as usize] = value((&raw const maru_memory_landing).addr());
    registers[REG_RAX as usize] = value(outcome.code);
    registers[REG_RDX as usize] = value(outcome.address);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_instruction_that_there_is() {
        for (clwb, clflushopt, write_back, invalidation) in [
            (true, true, Flush::Clwb, Flush::ClflushOpt),
            (true, false, Flush::Clwb, Flush::Clflush),
            (false, true, Flush::ClflushOpt, Flush::ClflushOpt),
            (false, false, Flush::Clflush, Flush::Clflush),
        ] {
            let features = Features { clwb, clflushopt };
            assert_eq!(features.for_write_back(), write_back, "{features:?}");
            assert_eq!(features.for_invalidation(), invalidation, "{features:?}");
        }
    }

    #[test]
    fn a_processor_without_avx_copies_too() {
        let from: Vec<u8> = (0..9000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let mut to = vec![0; from.len()];
        // SAFETY: two slices of this length.
        let outcome = unsafe { maru_memory_copy(to.as_mut_ptr(), from.as_ptr(), to.len()) };
        assert_eq!((outcome.into_result(), to), (Ok(()), from));
    }

    #[test]
    fn each_instruction_runs_and_changes_no_byte() {
        let features = Features::of_this_processor();
        let there = [
            (Flush::Clwb, features.clwb),
            (Flush::ClflushOpt, features.clflushopt),
            (Flush::Clflush, true),
        ];
        for (flush, _) in there.into_iter().filter(|(_, is_there)| *is_there) {
            for (start, end) in [(0, 1), (63, 65), (1, 4096), (100, 10_000)] {
                let bytes: Vec<u8> = (0..10_000_u32).map(|n| n.to_le_bytes()[0]).collect();
                let part = &bytes[start..end];
                // SAFETY: a slice; the processor has the instruction.
                let outcome = unsafe { flush.lines(part.as_ptr(), part.len()) };
                assert_eq!(outcome.into_result(), Ok(()), "{flush:?}");
                assert!(bytes.iter().zip(0_u32..).all(|(byte, n)| *byte == n.to_le_bytes()[0]));
            }
        }
    }
}
