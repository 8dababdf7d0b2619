//! LibAFL's traits `ShMem` and `ShMemProvider` on the C library `shmem_providers`. Take this file into your fuzzer.
//!
//! The mechanism is `sysv`, or what the environment's `SHMEM_PROVIDER` names: all processes of a fuzzer take the same.

use core::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    fmt::{self, Debug, Formatter},
    mem::zeroed,
    ops::{Deref, DerefMut},
    ptr, slice,
};
use std::{env, ffi::CString};

use libafl_bolts::{
    Error,
    shmem::{ShMem, ShMemId, ShMemProvider},
};

/// As in `shmem_providers.h`, which is the manual.
mod c {
    use super::{c_char, c_int, c_uint, c_void};

    pub const ABI_VERSION: c_uint = 2;
    pub const LINGER: c_uint = 0x40;

    #[repr(C)]
    pub struct Error {
        pub code: c_int,
        pub os_error: c_int,
        pub call: *const c_char,
        pub message: [c_char; 200],
    }

    #[repr(C)]
    pub struct Description {
        pub size: usize,
        pub id: [u8; 20],
    }

    pub enum Provider {}
    pub enum ShMem {}

    unsafe extern "C" {
        pub fn shmp_abi_version() -> c_uint;
        pub fn shmp_provider_open(
            name: *const c_char,
            options: *const c_void,
            ret_provider: *mut *mut Provider,
            reterr: *mut Error,
        ) -> c_int;
        pub fn shmp_provider_ref(provider: *mut Provider) -> *mut Provider;
        pub fn shmp_provider_close(provider: *mut Provider);
        pub fn shmp_provider_name(provider: *const Provider) -> *const c_char;
        pub fn shmp_create(
            provider: *mut Provider,
            size: usize,
            flags: c_uint,
            ret_shmem: *mut *mut ShMem,
            reterr: *mut Error,
        ) -> c_int;
        pub fn shmp_attach(
            provider: *mut Provider,
            description: *const Description,
            flags: c_uint,
            ret_shmem: *mut *mut ShMem,
            reterr: *mut Error,
        ) -> c_int;
        pub fn shmp_close(shmem: *mut ShMem, reterr: *mut Error) -> c_int;
        pub fn shmp_data(shmem: *const ShMem) -> *mut u8;
        pub fn shmp_size(shmem: *const ShMem) -> usize;
        pub fn shmp_describe(shmem: *const ShMem, ret_description: *mut Description, reterr: *mut Error) -> c_int;
        pub fn shmp_reap(
            provider: *mut Provider,
            flags: c_uint,
            visit: *const c_void,
            context: *mut c_void,
            reterr: *mut Error,
        ) -> c_int;
    }
}

/// Calls the library with room for an error, and gives what it put out.
fn checked<T>(mut output: T, call: impl FnOnce(&mut T, &mut c::Error) -> c_int) -> Result<T, Error> {
    let mut error: c::Error = unsafe { zeroed() };
    if call(&mut output, &mut error) >= 0 {
        return Ok(output);
    }
    let [function, message] = [error.call, error.message.as_ptr()].map(|text| unsafe { CStr::from_ptr(text) });
    Err(Error::unknown(format!("{}: {}", function.to_string_lossy(), message.to_string_lossy())))
}

/// A segment: a handle of the library.
pub struct CShMem(*mut c::ShMem);

/// A mechanism of the library; clones share it.
pub struct CShMemProvider(*mut c::Provider);

unsafe impl Send for CShMem {} // a handle may be used from any thread
unsafe impl Send for CShMemProvider {}

impl Deref for CShMem {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        unsafe { slice::from_raw_parts(c::shmp_data(self.0), c::shmp_size(self.0)) }
    }
}

impl DerefMut for CShMem {
    fn deref_mut(&mut self) -> &mut [u8] {
        unsafe { slice::from_raw_parts_mut(c::shmp_data(self.0), c::shmp_size(self.0)) }
    }
}

impl Debug for CShMem {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "CShMem({:?}, {} bytes)", self.id().as_str(), self.len())
    }
}

impl Drop for CShMem {
    fn drop(&mut self) {
        unsafe { c::shmp_close(self.0, ptr::null_mut()) };
    }
}

unsafe impl ShMem for CShMem {
    /// Empty, which nobody can attach to, when it has none: of `posix`, after its owner closed it.
    fn id(&self) -> ShMemId {
        let mut description = c::Description { size: 0, id: [0; 20] };
        unsafe { c::shmp_describe(self.0, &raw mut description, ptr::null_mut()) };
        ShMemId::from_array(&description.id)
    }
}

impl CShMemProvider {
    /// By the name of the mechanism.
    pub fn open(name: &str) -> Result<Self, Error> {
        if unsafe { c::shmp_abi_version() } != c::ABI_VERSION {
            return Err(Error::illegal_state("libshmem_providers has another ABI than this program was written for"));
        }
        let name = CString::new(name).map_err(|_| Error::illegal_argument("the name has a NUL"))?;
        checked(ptr::null_mut(), |provider, error| unsafe {
            c::shmp_provider_open(name.as_ptr(), ptr::null(), provider, error)
        })
        .map(Self)
    }

    /// The mechanism, such as "sysv".
    pub fn name(&self) -> &str {
        unsafe { CStr::from_ptr(c::shmp_provider_name(self.0)) }.to_str().unwrap_or_default()
    }

    /// Removes what killed processes left.
    pub fn reap(&self) -> Result<(), Error> {
        checked((), |(), error| unsafe { c::shmp_reap(self.0, 0, ptr::null(), ptr::null_mut(), error) })
    }

    /// LLMP tells the id of a page to the other side before that attaches. Whoever is killed in between would take it
    /// along, and the other side would end of that. memfd cannot linger.
    fn flags(&self) -> c_uint {
        if matches!(self.name(), "sysv" | "posix") { c::LINGER } else { 0 }
    }
}

impl Clone for CShMemProvider {
    fn clone(&self) -> Self {
        Self(unsafe { c::shmp_provider_ref(self.0) })
    }
}

impl Drop for CShMemProvider {
    fn drop(&mut self) {
        unsafe { c::shmp_provider_close(self.0) };
    }
}

impl Default for CShMemProvider {
    fn default() -> Self {
        Self::new().unwrap()
    }
}

impl Debug for CShMemProvider {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "CShMemProvider({})", self.name())
    }
}

impl ShMemProvider for CShMemProvider {
    type ShMem = CShMem;

    fn new() -> Result<Self, Error> {
        Self::open(&env::var("SHMEM_PROVIDER").unwrap_or_else(|_| "sysv".into()))
    }

    fn new_shmem(&mut self, size: usize) -> Result<CShMem, Error> {
        let flags = self.flags();
        checked(ptr::null_mut(), |shmem, error| unsafe { c::shmp_create(self.0, size, flags, shmem, error) })
            .map(CShMem)
    }

    fn shmem_from_id_and_size(&mut self, id: ShMemId, size: usize) -> Result<CShMem, Error> {
        let wanted = c::Description { size, id: *id.as_array() };
        checked(ptr::null_mut(), |shmem, error| unsafe { c::shmp_attach(self.0, &raw const wanted, 0, shmem, error) })
            .map(CShMem)
    }
}
