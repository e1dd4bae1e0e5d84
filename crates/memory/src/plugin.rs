//! Visibility by a shared library, for fabrics that need more than the processor's instructions.
#![allow(unsafe_code)]

use std::error::Error as _;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libloading::Library;

use crate::error::PluginError;

const SYMBOL: &str = "lmcache_shared_l1_visibility_v1";

/// The first argument of every call: what LMCache calls a memory whose visibility is software's to make.
const MODE: &CStr = c"software_fenced";

/// `int lmcache_shared_l1_visibility_v1(const char *mode, uint32_t operation, int device_fd,
/// void *address, uint64_t device_offset, size_t length, uint64_t generation)`
type Function = unsafe extern "C" fn(
    mode: *const c_char,
    operation: u32,
    device_fd: c_int,
    address: *mut c_void,
    device_offset: u64,
    length: usize,
    generation: u64,
) -> c_int;

/// A shared library that makes bytes visible between hosts.
///
/// It exports `lmcache_shared_l1_visibility_v1`, the C function that LMCache's shared L1 proposes,
/// and is called with the mode `"software_fenced"`, as LMCache calls it, the operation
/// 1 to publish or 2 to acquire, the open file of the device, the address and the device offset of
/// the first byte, the length and the generation. It returns 0 when it is done, a negative `errno`
/// if it failed. It rounds to whole lines itself, and is called from any thread, from several at
/// once.
#[derive(Clone)]
pub struct VisibilityPlugin(Arc<Loaded>);

struct Loaded {
    path: PathBuf,
    function: Function,
    /// Has the code of `function`.
    _library: Library,
}

/// What a plug-in is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Publish = 1,
    Acquire = 2,
}

/// A range of a device and where it is mapped.
pub(crate) struct DeviceRange<'a> {
    pub(crate) device: &'a File,
    pub(crate) offset: u64,
    pub(crate) address: *mut u8,
    pub(crate) len: usize,
}

impl VisibilityPlugin {
    /// Loads the library at `path`, which is absolute: no other is ever searched for.
    ///
    /// Its code runs in this process, from now on, with all its rights: it has to be trusted as this
    /// program is.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, PluginError> {
        let path = path.as_ref().to_owned();
        if !path.is_absolute() {
            return Err(PluginError::NotAbsolute { path });
        }
        // SAFETY: what its constructors and destructors do is the trust that is asked for above.
        let library = unsafe { Library::new(&path) }.map_err(|error| {
            let reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            PluginError::Load { path: path.clone(), reason }
        })?;
        // SAFETY: the symbol's name says its type.
        let function = match unsafe { library.get::<Function>(SYMBOL) } {
            Ok(function) => *function,
            Err(_) => return Err(PluginError::Symbol { path, symbol: SYMBOL }),
        };
        Ok(Self(Arc::new(Loaded { path, function, _library: library })))
    }

    /// Where it was loaded from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Has it done; otherwise the status that it returns.
    pub(crate) fn call(
        &self,
        operation: Operation,
        range: &DeviceRange<'_>,
        generation: u64,
    ) -> Result<(), c_int> {
        let (fd, address) = (range.device.as_raw_fd(), range.address.cast());
        // SAFETY: the library is loaded, the file open, the range mapped; the rest is the trust that
        // `load` asks for.
        let status = unsafe {
            let function = self.0.function;
            function(
                MODE.as_ptr(),
                operation as u32,
                fd,
                address,
                range.offset,
                range.len,
                generation,
            )
        };
        if status == 0 { Ok(()) } else { Err(status) }
    }
}

impl fmt::Debug for VisibilityPlugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VisibilityPlugin({})", self.0.path.display())
    }
}

impl Operation {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Acquire => "acquire",
        }
    }
}
