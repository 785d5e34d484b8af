//! The boundary is frozen: what it looks like is kept as a text beside this file, one for each major number.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::mem::offset_of;
use std::path::Path;

use abi_stable::abi_stability::PrefixStableAbi;
use abi_stable::type_layout::TypeLayout;

use super::{ABI_MAJOR, AbiCall, AbiCompletion, AbiCreated, AbiHost, AbiOutcome, PluginModule, PluginModulePrefix};

#[test]
fn the_boundary_changes_only_together_with_its_number() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/abi/layout-{ABI_MAJOR}.txt"));
    let layout = layout();
    if !path.exists() && std::env::var_os("QTASKS_KEEP_LAYOUT").is_some() {
        std::fs::write(&path, &layout).expect("the layout of a new major is kept");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!("{}: {error}; a new ABI_MAJOR is kept by running this test once with QTASKS_KEEP_LAYOUT=1", path.display())
    });
    let first = layout.lines().zip(kept.lines()).position(|(now, then)| now != then);
    assert!(
        layout == kept,
        "the boundary is laid out differently than ABI {ABI_MAJOR} is (from line {} of {} on).\n\
         Every plugin that was built so far would be refused, or worse. Undo the change; a new ability is asked for through `query` \
         and raises ABI_MINOR alone. Where there is no other way, raise ABI_MAJOR (and the number in ROOT_SYMBOL and in \
         export_plugin!), which asks every plugin author to rebuild.\n\nnow:\n{layout}",
        first.map_or(0, |line| line + 1),
        path.display()
    );
}

/// The boundary as text: where each field lies, and each type that can be reached from the root module.
fn layout() -> String {
    let mut text = offsets();
    describe(<PluginModulePrefix as PrefixStableAbi>::LAYOUT, &mut BTreeSet::new(), &mut text);
    text
}

macro_rules! offsets {
    ($($ty:ident { $($field:ident),* })*) => {
        /// Offsets in bytes, on a machine with 64-bit pointers.
        fn offsets() -> String {
            let mut text = String::new();
            $(
                let fields = [$(format!("{} at {}", stringify!($field), offset_of!($ty, $field))),*];
                let _ = writeln!(text, "{}: {}", stringify!($ty), fields.join(", "));
            )*
            text
        }
    };
}

offsets! {
    AbiOutcome { kind, payload }
    AbiCall { id, entry, name, input }
    AbiHost { context, log, max_level, now, query }
    AbiCompletion { complete }
    AbiCreated { instance, outcome }
    PluginModule { manifest, create, start, call, call_async, cancel, stop, destroy, query }
}

/// One type, then the types that it is made of, each once.
fn describe(layout: &'static TypeLayout, seen: &mut BTreeSet<String>, text: &mut String) {
    let name = name_of(layout);
    if !seen.insert(name.clone()) {
        return;
    }
    let _ = writeln!(text, "\n{name}: {} bytes, aligned to {}, {:?}", layout.size(), layout.alignment(), layout.repr_attr());
    let mut inner = Vec::new();
    for field in layout.get_fields().into_iter().flatten() {
        if !field.is_function() {
            let _ = writeln!(text, "  {}: {}", field.name(), name_of(field.layout()));
            inner.push(field.layout());
        }
        for function in field.function_range().iter() {
            let parameters: Vec<_> = function.param_type_layouts.iter().map(|layout| layout()).collect();
            let returned = function.return_type_layout().map(|layout| layout());
            let names: Vec<_> = parameters.iter().map(|layout| name_of(layout)).collect();
            let returns = returned.map_or_else(|| "()".to_owned(), name_of);
            let _ = writeln!(text, "  {}: extern \"C\" fn({}) -> {returns}", field.name(), names.join(", "));
            inner.extend(parameters);
            inner.extend(returned);
        }
    }
    for layout in inner {
        describe(layout, seen, text);
    }
}

/// abi_stable prints `*const u8 ` and `&'a  u8`.
fn name_of(layout: &TypeLayout) -> String {
    layout.full_type().to_string().split_whitespace().collect::<Vec<_>>().join(" ").replace(" >", ">")
}
