//! The SIGBUS handler.

use std::mem;
use std::ptr;
use std::sync::{Once, OnceLock};

use libc::{SA_NODEFER, SA_ONSTACK, SA_RESTART, SA_SIGINFO, SIG_DFL, SIG_IGN, SIGBUS};
use libc::{c_int, c_void, siginfo_t, ucontext_t};

use super::{Outcome, arch};

type Handler = extern "C" fn(c_int);
type InfoHandler = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

/// What handled SIGBUS before.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Installs the handler, once in the life of the process.
pub(crate) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let handler: InfoHandler = on_sigbus;
        // SAFETY: all zeros are a valid `sigaction`; both calls get valid pointers or none. The
        // handler does only what a signal handler may do (see the module documentation).
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            // Before ours is installed, since it may be needed at once.
            let asked = libc::sigaction(SIGBUS, ptr::null(), &raw mut action);
            PREVIOUS.get_or_init(|| action);
            // The mask stays: the previous handler runs inside of ours.
            action.sa_sigaction = handler as usize;
            action.sa_flags &= SA_NODEFER | SA_RESTART;
            action.sa_flags |= SA_SIGINFO | SA_ONSTACK;
            let set = libc::sigaction(SIGBUS, &raw const action, ptr::null_mut());
            assert_eq!((asked, set), (0, 0), "SIGBUS can be handled");
        }
    });
}

extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands both to this handler alone, until it returns.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr()) };
    // What a process sent has no positive code; of damage that nobody has touched yet, the kernel
    // tells whichever thread.
    let is_fault = code > 0 && code != libc::BUS_MCEERR_AO;
    if is_fault {
        // SAFETY: as above.
        let context = unsafe { &mut *context.cast::<ucontext_t>() };
        if arch::routines().contains(&arch::instruction(context)) {
            let code = code.cast_unsigned() as usize;
            arch::land(context, &Outcome { code, address: address.addr() });
            return;
        }
    }
    pass_on(signal, info, context, is_fault);
}

/// Does what would have been done without this handler.
fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void, is_fault: bool) {
    let previous = PREVIOUS.get().map_or((SIG_DFL, 0), |old| (old.sa_sigaction, old.sa_flags));
    match previous {
        (SIG_IGN, _) if !is_fault => {}
        (SIG_DFL | SIG_IGN, _) => {
            // SAFETY: both are async-signal-safe. A fault comes again as soon as this handler has
            // returned; what was sent does not, so it is sent again.
            unsafe {
                libc::signal(SIGBUS, SIG_DFL);
                if !is_fault {
                    libc::raise(SIGBUS);
                }
            }
        }
        (handler, flags) if flags & SA_SIGINFO != 0 => {
            // SAFETY: so it was registered.
            let handler: InfoHandler = unsafe { mem::transmute(handler) };
            handler(signal, info, context);
        }
        (handler, _) => {
            // SAFETY: as above.
            let handler: Handler = unsafe { mem::transmute(handler) };
            handler(signal);
        }
    }
}
