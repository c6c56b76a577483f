//! What a `.proto` file promises, as a flat table that two versions of it can be compared by.
//!
//! Comments, order and layout are no part of it. Every declaration is one row, so that a difference
//! is reported by the name of what differs.

use std::collections::BTreeMap;

use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver};
use protox::prost_reflect::{
    DynamicMessage, EnumDescriptor, ExtensionDescriptor, FieldDescriptor, FileDescriptor, MessageDescriptor,
    MethodDescriptor,
};
use protox::{Compiler, Error};

/// Declaration ("field csi.v1.Volume.volume_id") to what is declared of it.
pub(crate) type Contract = BTreeMap<String, String>;

/// Compiles the text of a `.proto` that imports nothing but Google's files.
pub(crate) fn compile(source: &str) -> Result<FileDescriptor, Error> {
    const NAME: &str = "csi.proto";
    struct Text(String);
    impl FileResolver for Text {
        fn open_file(&self, name: &str) -> Result<File, Error> {
            if name == NAME { File::from_source(name, &self.0) } else { Err(Error::file_not_found(name)) }
        }
    }
    let mut resolver = ChainFileResolver::new();
    resolver.add(GoogleFileResolver::new());
    resolver.add(Text(source.to_owned()));
    let mut compiler = Compiler::with_file_resolver(resolver);
    compiler.include_imports(true).open_file(NAME)?;
    Ok(compiler.descriptor_pool().get_file_by_name(NAME).expect("the file just compiled is in the pool"))
}

/// The rows of everything `file` declares.
pub(crate) fn contract(file: &FileDescriptor) -> Contract {
    let mut rows = Contract::new();
    let syntax = file.file_descriptor_proto().syntax().to_owned();
    rows.insert("file".into(), format!("syntax={syntax} package={}", file.package_name()));
    file.messages().for_each(|message| add_message(&mut rows, &message));
    file.enums().for_each(|kind| add_enum(&mut rows, &kind));
    file.extensions().for_each(|extension| add_extension(&mut rows, &extension));
    for service in file.services() {
        rows.insert(format!("service {}", service.full_name()), options(&service.options()));
        service.methods().for_each(|method| add_method(&mut rows, &method));
    }
    rows
}

/// One line for each row that only one side has or that says different things; empty if they agree.
pub(crate) fn differences(ours: &Contract, published: &Contract) -> Vec<String> {
    let mut lines = Vec::new();
    for (key, wanted) in published {
        match ours.get(key) {
            None => lines.push(format!("{key}: missing, published {wanted}")),
            Some(have) if have != wanted => lines.push(format!("{key}: ours {have}, published {wanted}")),
            Some(_) => {}
        }
    }
    for (key, have) in ours.iter().filter(|(key, _)| !published.contains_key(*key)) {
        lines.push(format!("{key}: not published, ours {have}"));
    }
    lines
}

fn add_message(rows: &mut Contract, message: &MessageDescriptor) {
    let entry = message.is_map_entry();
    let reserved: Vec<_> = message.reserved_ranges().collect();
    let names: Vec<_> = message.reserved_names().collect();
    rows.insert(
        format!("message {}", message.full_name()),
        format!("map_entry={entry} reserved={reserved:?}{names:?} {}", options(&message.options())),
    );
    message.fields().for_each(|field| add_field(rows, &field));
    for oneof in message.oneofs() {
        let members: Vec<_> = oneof.fields().map(|field| field.name().to_owned()).collect();
        let synthetic = oneof.is_synthetic();
        rows.insert(
            format!("oneof {}", oneof.full_name()),
            format!("synthetic={synthetic} members={} {}", members.join(","), options(&oneof.options())),
        );
    }
    message.child_messages().for_each(|child| add_message(rows, &child));
    message.child_enums().for_each(|kind| add_enum(rows, &kind));
    message.child_extensions().for_each(|extension| add_extension(rows, &extension));
}

fn add_field(rows: &mut Contract, field: &FieldDescriptor) {
    let proto = field.field_descriptor_proto();
    let oneof = field.containing_oneof().map(|oneof| oneof.name().to_owned()).unwrap_or_default();
    let row = format!(
        "number={} type={}{} label={} map={} presence={} packed={} oneof={oneof} json={} {}",
        field.number(),
        proto.r#type().as_str_name(),
        proto.type_name(),
        proto.label().as_str_name(),
        field.is_map(),
        field.supports_presence(),
        field.is_packed(),
        field.json_name(),
        options(&field.options()),
    );
    rows.insert(format!("field {}", field.full_name()), row);
}

fn add_enum(rows: &mut Contract, kind: &EnumDescriptor) {
    let reserved: Vec<_> = kind.reserved_ranges().collect();
    let names: Vec<_> = kind.reserved_names().collect();
    rows.insert(
        format!("enum {}", kind.full_name()),
        format!("reserved={reserved:?}{names:?} {}", options(&kind.options())),
    );
    for value in kind.values() {
        let row = format!("number={} {}", value.number(), options(&value.options()));
        rows.insert(format!("value {}.{}", kind.full_name(), value.name()), row);
    }
}

fn add_extension(rows: &mut Contract, extension: &ExtensionDescriptor) {
    let proto = extension.field_descriptor_proto();
    let row = format!(
        "extends={} number={} type={}{} label={} {}",
        extension.containing_message().full_name(),
        extension.number(),
        proto.r#type().as_str_name(),
        proto.type_name(),
        proto.label().as_str_name(),
        options(&extension.options()),
    );
    rows.insert(format!("extension {}", extension.full_name()), row);
}

fn add_method(rows: &mut Contract, method: &MethodDescriptor) {
    let row = format!(
        "input={} output={} client_streaming={} server_streaming={} {}",
        method.input().full_name(),
        method.output().full_name(),
        method.is_client_streaming(),
        method.is_server_streaming(),
        options(&method.options()),
    );
    rows.insert(format!("method {}", method.full_name()), row);
}

/// Options that are set, sorted by name. CSI has none but booleans; another kind stops the test
/// rather than being passed over.
fn options(set: &DynamicMessage) -> String {
    assert_eq!(set.unknown_fields().count(), 0, "an option nothing declares: {set:?}");
    let known = set.fields().map(|(field, value)| (field.full_name().to_owned(), value));
    let custom = set.extensions().map(|(option, value)| (option.full_name().to_owned(), value));
    let mut texts: Vec<_> = known
        .chain(custom)
        .map(|(name, value)| match value.as_bool() {
            Some(flag) => format!("{name}={flag}"),
            None => panic!("option {name} is no boolean: extend the comparison"),
        })
        .collect();
    texts.sort();
    format!("options[{}]", texts.join(","))
}
