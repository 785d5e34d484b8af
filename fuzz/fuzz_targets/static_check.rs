#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| qtasks_host::fuzzing::static_check(bytes));
