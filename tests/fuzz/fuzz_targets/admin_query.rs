//! Query strings of the admin interface. What is understood survives being written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_agent::admin::{ConnectionFilter, api::ExplainQuery, query};

fuzz_target!(|text: &str| {
    let pairs = query::parse(text);
    let built = query::build(pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())));
    assert_eq!(query::parse(built.trim_start_matches('?')), pairs);

    match ConnectionFilter::parse(text) {
        Ok(filter) => {
            let again = filter.to_query();
            assert_eq!(
                ConnectionFilter::parse(again.trim_start_matches('?')),
                Ok(filter)
            );
        }
        Err(error) => assert!(!error.is_empty()),
    }
    if let Ok(question) = ExplainQuery::parse(text) {
        let again = question.to_query();
        assert_eq!(
            ExplainQuery::parse(again.trim_start_matches('?')),
            Ok(question)
        );
    }
});
