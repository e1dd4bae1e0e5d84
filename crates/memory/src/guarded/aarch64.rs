//! The routines for arm64. Linux lets programs clean and invalidate lines and read `ctr_el0`.

use std::arch::{asm, global_asm};
use std::ops::Range;

use libc::ucontext_t;

use super::{Fault, Outcome};
use crate::LineInstructions;

/// Its non-temporal stores are no more than a hint, so nothing is known to be gained.
pub(crate) const STREAM_LEN_MIN: usize = usize::MAX;

// None uses the stack, so each can be left from anywhere by a plain return: the landing pad.
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

    .macro maru_memory_flush operation
        maru_memory_enter \operation
        dsb sy
    2:  dc \operation, x0
        add x0, x0, x2
        cmp x0, x1
        b.lo 2b
        dsb sy
        mov x0, #0
        maru_memory_leave \operation
    .endm

    .globl maru_memory_guarded
    .hidden maru_memory_guarded
maru_memory_guarded:

    maru_memory_enter copy
        lsr x3, x2, #6
        cbz x3, 3f
    2:  ldp q0, q1, [x1]
        ldp q2, q3, [x1, #32]
        add x1, x1, #64
        stp q0, q1, [x0]
        stp q2, q3, [x0, #32]
        add x0, x0, #64
        subs x3, x3, #1
        b.ne 2b
    3:  ands x2, x2, #63
        b.eq 5f
    4:  ldrb w3, [x1], #1
        strb w3, [x0], #1
        subs x2, x2, #1
        b.ne 4b
    5:  mov x0, #0
    maru_memory_leave copy

    maru_memory_flush cvac
    maru_memory_flush civac

    .globl maru_memory_guarded_end
    .hidden maru_memory_guarded_end
maru_memory_guarded_end:

    maru_memory_enter landing
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

    fn maru_memory_copy(to: *mut u8, from: *const u8, len: usize) -> Outcome;
    fn maru_memory_cvac(line: *const u8, end: *const u8, line_bytes: usize) -> Outcome;
    fn maru_memory_civac(line: *const u8, end: *const u8, line_bytes: usize) -> Outcome;
}

pub(crate) fn line_instructions() -> LineInstructions {
    LineInstructions { write_back: "dc cvac", invalidate: "dc civac" }
}

/// # Safety
/// As for `super::copy`.
pub(super) unsafe fn copy(to: *mut u8, from: *const u8, len: usize) -> Outcome {
    // SAFETY: as the caller promises.
    unsafe { maru_memory_copy(to, from, len) }
}

/// # Safety
/// As for `super::copy`.
pub(super) unsafe fn copy_through(to: *mut u8, from: *const u8, len: usize) -> Result<(), Fault> {
    // SAFETY: as the caller promises.
    unsafe {
        super::copy(to, from, len)?;
        super::write_back(to, len)
    }
}

/// # Safety
/// As for `super::write_back`.
pub(super) unsafe fn write_back(start: *const u8, len: usize) -> Outcome {
    let (line, line_bytes) = first_line(start);
    // SAFETY: as the caller promises; no line straddles two pages of memory.
    unsafe { maru_memory_cvac(line, start.wrapping_add(len), line_bytes) }
}

/// # Safety
/// As for `super::invalidate`.
pub(super) unsafe fn invalidate(start: *const u8, len: usize) -> Outcome {
    let (line, line_bytes) = first_line(start);
    // SAFETY: as in `write_back`.
    unsafe { maru_memory_civac(line, start.wrapping_add(len), line_bytes) }
}

/// Where the line of `start` starts, and how many bytes lines have.
fn first_line(start: *const u8) -> (*const u8, usize) {
    let cache_type: u64;
    // SAFETY: reads a register that Linux lets programs read.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) cache_type, options(nomem, nostack, pure)) };
    // DminLine: the binary logarithm of words of 4 bytes.
    let line_bytes = 4 << (cache_type >> 16 & 0xf);
    (start.map_addr(|address| address / line_bytes * line_bytes), line_bytes)
}

/// The addresses of the routines' instructions.
pub(super) fn routines() -> Range<u64> {
    let bounds = [&raw const maru_memory_guarded, &raw const maru_memory_guarded_end];
    let [start, end] = bounds.map(|bound| bound.addr() as u64);
    start..end
}

/// Where the thread was.
pub(super) fn instruction(context: &ucontext_t) -> u64 {
    context.uc_mcontext.pc
}

/// Lets the thread go on at the landing pad, with `outcome` as the routine's result.
pub(super) fn land(context: &mut ucontext_t, outcome: &Outcome) {
    let state = &mut context.uc_mcontext;
    state.pc = (&raw const maru_memory_landing).addr() as u64;
    state.regs[0] = outcome.code as u64;
    state.regs[1] = outcome.address as u64;
}
