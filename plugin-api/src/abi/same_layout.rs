//! Whether two descriptions of the boundary are the same, word for word.
//!
//! abi_stable asks whether one is *compatible* with the other, and keeps a reason for each difference: about as much work as `dlopen`
//! itself. A plugin that was built against this version's boundary has the same description, which is found out in a fraction of that.
//! Whatever is not the same here is left to abi_stable, for its judgement and its reasons.

use std::ptr;

use abi_stable::type_layout::{TLData, TLField, TLFields, TLFunction, Tag, TypeLayout};

/// Whether both describe the same types, in everything that abi_stable would look at. `false` says nothing about compatibility.
pub(super) fn same(ours: &'static TypeLayout, theirs: &'static TypeLayout) -> bool {
    Comparison::default().layouts(ours, theirs)
}

#[derive(Default)]
struct Comparison {
    /// Pairs that are compared already, or just now: types refer to themselves. They are few.
    seen: Vec<(*const TypeLayout, *const TypeLayout)>,
}

impl Comparison {
    fn layouts(&mut self, ours: &'static TypeLayout, theirs: &'static TypeLayout) -> bool {
        let pair = (ptr::from_ref(ours), ptr::from_ref(theirs));
        if self.seen.contains(&pair) {
            return true;
        }
        self.seen.push(pair);
        let (our_generics, their_generics) = (ours.generics(), theirs.generics());
        ours.name() == theirs.name()
            && ours.item_info().package_and_version() == theirs.item_info().package_and_version()
            && ours.size() == theirs.size()
            && ours.alignment() == theirs.alignment()
            && ours.is_nonzero() == theirs.is_nonzero()
            && ours.repr_attr() == theirs.repr_attr()
            && our_generics.lifetime_count() == their_generics.lifetime_count()
            && our_generics.const_params() == their_generics.const_params()
            // The boundary has none of these two; what has is left to abi_stable.
            && [ours, theirs].iter().all(|layout| layout.tag() == Tag::NULL && layout.extra_checks().is_none())
            && self.fields(ours.phantom_fields(), theirs.phantom_fields())
            && self.data(ours.data(), theirs.data())
    }

    fn data(&mut self, ours: TLData, theirs: TLData) -> bool {
        match (ours, theirs) {
            (TLData::Opaque, TLData::Opaque) => true,
            (TLData::Primitive(ours), TLData::Primitive(theirs)) => ours == theirs,
            (TLData::Struct { fields: ours }, TLData::Struct { fields: theirs })
            | (TLData::Union { fields: ours }, TLData::Union { fields: theirs }) => self.fields(ours, theirs),
            (TLData::PrefixType(ours), TLData::PrefixType(theirs)) => {
                ours.first_suffix_field == theirs.first_suffix_field
                    && ours.conditional_prefix_fields == theirs.conditional_prefix_fields
                    && ours.accessible_fields == theirs.accessible_fields
                    && self.fields(ours.fields, theirs.fields)
            }
            (TLData::Enum(ours), TLData::Enum(theirs)) => {
                // The boundary has no other; what has is left to abi_stable.
                [ours, theirs].iter().all(|one| one.exhaustiveness.is_exhaustive())
                    && ours.field_count == theirs.field_count
                    && ours.variant_names == theirs.variant_names
                    && ours.discriminants == theirs.discriminants
                    && self.fields(ours.fields, theirs.fields)
            }
            _ => false,
        }
    }

    fn fields(&mut self, ours: TLFields, theirs: TLFields) -> bool {
        ours.len() == theirs.len() && ours.iter().zip(theirs.iter()).all(|(ours, theirs)| self.field(ours, theirs))
    }

    fn field(&mut self, ours: TLField, theirs: TLField) -> bool {
        let (our_functions, their_functions) = (ours.function_range(), theirs.function_range());
        ours.name() == theirs.name()
            && ours.lifetime_indices() == theirs.lifetime_indices()
            && ours.is_function() == theirs.is_function()
            && our_functions.len() == their_functions.len()
            && our_functions.iter().zip(their_functions.iter()).all(|(ours, theirs)| self.function(&ours, &theirs))
            && self.layouts(ours.layout(), theirs.layout())
    }

    fn function(&mut self, ours: &TLFunction, theirs: &TLFunction) -> bool {
        let (our_parameters, their_parameters) = (ours.param_type_layouts.iter(), theirs.param_type_layouts.iter());
        ours.param_names == theirs.param_names
            && ours.paramret_lifetime_indices == theirs.paramret_lifetime_indices
            && ours.fn_qualifs == theirs.fn_qualifs
            && our_parameters.len() == their_parameters.len()
            && our_parameters.zip(their_parameters).all(|(ours, theirs)| self.layouts(ours(), theirs()))
            && match (ours.return_type_layout(), theirs.return_type_layout()) {
                (Some(ours), Some(theirs)) => self.layouts(ours(), theirs()),
                (None, None) => true,
                _ => false,
            }
    }
}

#[cfg(test)]
mod tests {
    use abi_stable::StableAbi;
    use abi_stable::abi_stability::abi_checking::check_layout_compatibility;

    use super::{TypeLayout, same};

    /// Two types, one within the other, as a library has its own of them.
    macro_rules! library {
        ($name:ident: { $($inner:tt)* }, $f:ty) => {
            mod $name {
                #![allow(dead_code, unused_imports, reason = "the layout is all that is looked at")]
                use abi_stable::StableAbi;
                use abi_stable::std_types::{RStr, RString};

                #[repr(C)]
                #[derive(StableAbi)]
                pub(super) struct Inner { $($inner)* }

                #[repr(C)]
                #[derive(StableAbi)]
                pub(super) struct Outer<'a> { f: $f, text: RStr<'a>, next: *const Inner }
            }
        };
    }

    library!(ours: { a: u32, b: RString }, extern "C" fn(RStr<'_>, Inner) -> u32);
    library!(again: { a: u32, b: RString }, extern "C" fn(RStr<'_>, Inner) -> u32);
    library!(other_name: { a: u32, c: RString }, extern "C" fn(RStr<'_>, Inner) -> u32);
    library!(other_type: { a: i32, b: RString }, extern "C" fn(RStr<'_>, Inner) -> u32);
    library!(fewer: { a: u32 }, extern "C" fn(RStr<'_>, Inner) -> u32);
    library!(other_order: { b: RString, a: u32 }, extern "C" fn(RStr<'_>, Inner) -> u32);
    library!(parameter: { a: u32, b: RString }, extern "C" fn(RStr<'_>, u32) -> u32);
    library!(one_less: { a: u32, b: RString }, extern "C" fn(RStr<'_>) -> u32);
    library!(returns: { a: u32, b: RString }, extern "C" fn(RStr<'_>, Inner) -> u64);
    library!(returns_none: { a: u32, b: RString }, extern "C" fn(RStr<'_>, Inner));
    library!(is_unsafe: { a: u32, b: RString }, unsafe extern "C" fn(RStr<'_>, Inner) -> u32);
    library!(lifetime: { a: u32, b: RString }, extern "C" fn(RStr<'a>, Inner) -> u32);

    fn compatible(ours: &'static TypeLayout, theirs: &'static TypeLayout) -> bool {
        check_layout_compatibility(ours, theirs).is_ok()
    }

    #[test]
    fn what_two_libraries_were_built_from_alike_is_the_same() {
        let (ours, again) = (ours::Outer::LAYOUT, again::Outer::LAYOUT);
        assert!(!std::ptr::eq(ours, again), "two descriptions");
        assert!(compatible(ours, again), "to abi_stable");
        assert!(same(ours, again), "word for word");
    }

    #[test]
    fn what_differs_anywhere_is_not_the_same() {
        let ours = ours::Outer::LAYOUT;
        for (what, theirs) in [
            ("a field's name", other_name::Outer::LAYOUT),
            ("a field's type", other_type::Outer::LAYOUT),
            ("a field less", fewer::Outer::LAYOUT),
            ("the order", other_order::Outer::LAYOUT),
            ("a parameter", parameter::Outer::LAYOUT),
            ("a parameter less", one_less::Outer::LAYOUT),
            ("what a function returns", returns::Outer::LAYOUT),
            ("a function that returns nothing", returns_none::Outer::LAYOUT),
            ("an unsafe function", is_unsafe::Outer::LAYOUT),
            ("a parameter's lifetime", lifetime::Outer::LAYOUT),
        ] {
            assert!(!same(ours, theirs) && !same(theirs, ours), "{what}");
            assert!(!compatible(ours, theirs), "{what}: abi_stable sees it as well");
        }
    }
}
