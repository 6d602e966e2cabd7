//! librdkafka's error for a broker's storage failure, and how to classify it if it is known to mean a full disk.

#![cfg(test)]

#[path = "../../support.rs"]
#[allow(dead_code)]
mod support;

use std::time::Duration;

use rdkafka::{
    ClientConfig,
    error::{KafkaError, RDKafkaErrorCode},
    mocking::MockCluster,
    producer::{DefaultProducerContext, FutureProducer, FutureRecord},
    types::{RDKafkaApiKey, RDKafkaRespErr},
};
use tower_storage_guard::fault::{Cause, Classifier, Fault, Resource, Verdict, classify};

/// librdkafka's mock brokers, which refuse everything that is produced, and a producer for them.
fn refusing(
    refusal: RDKafkaRespErr,
    retries: &str,
) -> (MockCluster<'static, DefaultProducerContext>, FutureProducer) {
    let brokers = MockCluster::new(1).unwrap();
    brokers.create_topic("t", 1, 1).unwrap();
    brokers.request_errors(RDKafkaApiKey::Produce, &[refusal; 1000]);
    let producer = ClientConfig::new()
        .set("bootstrap.servers", brokers.bootstrap_servers())
        .set("message.timeout.ms", "2000")
        .set("retries", retries)
        .create()
        .unwrap();
    (brokers, producer)
}

async fn produce(producer: FutureProducer) -> Result<(), KafkaError> {
    let record = FutureRecord::<(), _>::to("t").payload("content");
    let sent = producer.send(record, Duration::ZERO).await;
    sent.map(drop).map_err(|(error, _)| error)
}

/// The example in the documentation of `fault`. Only for brokers whose log directories fail by filling up alone.
fn with_kafka(classifier: Classifier) -> Classifier {
    classifier.with(|error| {
        let code = error.downcast_ref::<KafkaError>()?.rdkafka_error_code()?;
        let full = Fault::new(Cause::DiskFull, Resource::Bytes);
        (code == RDKafkaErrorCode::KafkaStorageError).then_some(Verdict::Fault(full))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_error_is_no_fault_by_default() {
    let (_brokers, producer) = refusing(RDKafkaRespErr::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR, "0");
    let error = produce(producer.clone()).await.unwrap_err();
    assert_eq!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::KafkaStorageError)
    );
    assert_eq!(classify(&error), None);
    support::assert_not_refused(support::with(&producer, produce)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_error_is_a_fault_if_configured() {
    let classifier = with_kafka(Classifier::default());
    let (_brokers, producer) = refusing(RDKafkaRespErr::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR, "0");
    let error = produce(producer).await.unwrap_err();
    let full = Some(Fault::new(Cause::DiskFull, Resource::Bytes));
    assert_eq!(classifier.classify(&error), full);
    let error = anyhow::Error::from(error).context("while storing");
    assert_eq!(classifier.classify(&*error), full);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_retries_never_reports_the_error() {
    let (_brokers, producer) = refusing(
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_KAFKA_STORAGE_ERROR,
        "2147483647",
    );
    let error = produce(producer).await.unwrap_err();
    assert_eq!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::MessageTimedOut)
    );
    assert_eq!(with_kafka(Classifier::default()).classify(&error), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_refusals_are_no_fault() {
    let classifier = with_kafka(Classifier::default());
    for refusal in [
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_POLICY_VIOLATION,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
    ] {
        let (_brokers, producer) = refusing(refusal, "0");
        let error = produce(producer).await.unwrap_err();
        assert_eq!(classifier.classify(&error), None, "{error}");
    }
    let full_queue = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
    assert_eq!(classifier.classify(&full_queue), None);
}
