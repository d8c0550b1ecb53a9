//! The client library: a sans-IO session and its tonic driver.
