//! Object stores through their clients: one that answers as MinIO and Ceph do when there is no room, and a full local
//! filesystem.

use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_s3::{
    config::{BehaviorVersion, Credentials, Region, retry},
    primitives::ByteStream,
    types::{CompletedMultipartUpload, CompletedPart},
};
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use http_body_util::BodyExt;
use object_store::{
    ClientOptions, MultipartUpload, ObjectStore, ObjectStoreExt, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
        HttpResponseBody, HttpService,
    },
    path::Path as Key,
};
use opendal::{Buffer, HttpBody, HttpTransport, HttpTransporter, OperationContext, Operator};
use tokio::task::JoinHandle;
use tower_storage_guard::fault::Cause;

use crate::support::{assert_becomes, assert_not_refused, assert_refused, with};

/// The requests for writing an object, as a whole or in parts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Operation {
    Put,
    Create,
    Part,
    Complete,
}

/// An answer of a store that refuses a write.
#[derive(Clone, Copy)]
struct Answer {
    status: u16,
    /// Empty: without content.
    code: &'static str,
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let Self { status, code } = self;
        let status = StatusCode::from_u16(status).unwrap();
        if code.is_empty() {
            return status.into_response();
        }
        let content = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>XMinioStorageFull</Message>\
             <Key>QuotaExceeded</Key><BucketName>bucket</BucketName><RequestId>1</RequestId><HostId>1</HostId></Error>"
        );
        xml(status, content)
    }
}

fn xml(status: StatusCode, content: String) -> Response {
    (status, [(header::CONTENT_TYPE, "application/xml")], content).into_response()
}

const MINIO_FULL: Answer = Answer {
    status: 507,
    code: "XMinioStorageFull",
};
const MINIO_QUOTA: Answer = Answer {
    status: 400,
    code: "XMinioAdminBucketQuotaExceeded",
};
const CEPH_QUOTA: Answer = Answer {
    status: 403,
    code: "QuotaExceeded",
};

/// A store that speaks S3, and answers one operation with this, and the others with success.
struct Store {
    url: Arc<str>,
    task: JoinHandle<()>,
}

impl Store {
    async fn start(operation: Operation, answer: Answer) -> Self {
        let app = Router::new()
            .fallback(serve)
            .layer(DefaultBodyLimit::disable())
            .with_state((operation, answer));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).into();
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { url, task }
    }

    /// A handler's work with a client of this store.
    fn work<Fut>(
        &self,
        work: fn(Arc<str>) -> Fut,
    ) -> impl Fn() -> Fut + Clone + Send + Sync + use<Fut> {
        let url = self.url.clone();
        move || work(url.clone())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    State((failing, answer)): State<(Operation, Answer)>,
    method: Method,
    uri: Uri,
    _content: Bytes,
) -> Response {
    let query = uri.query().unwrap_or_default();
    let operation = match method {
        Method::PUT if query.contains("partNumber=") => Operation::Part,
        Method::PUT => Operation::Put,
        Method::POST if query.contains("uploadId=") => Operation::Complete,
        Method::POST => Operation::Create,
        // Aborts an upload.
        _ => return StatusCode::NO_CONTENT.into_response(),
    };
    if operation == failing {
        return answer.into_response();
    }
    let tag = "\"1\"";
    let named = "<Bucket>bucket</Bucket><Key>key</Key>";
    match operation {
        Operation::Put | Operation::Part => [(header::ETAG, tag)].into_response(),
        Operation::Create => {
            let root = "InitiateMultipartUploadResult";
            let content = format!("<{root}>{named}<UploadId>1</UploadId></{root}>");
            xml(StatusCode::OK, content)
        }
        Operation::Complete => {
            let root = "CompleteMultipartUploadResult";
            xml(
                StatusCode::OK,
                format!("<{root}>{named}<ETag>{tag}</ETag></{root}>"),
            )
        }
    }
}

/// By `object_store`.
mod by_object_store {
    use super::*;

    /// The library is built here without a client, because its own brings a C library that takes a minute to compile.
    #[derive(Clone, Debug)]
    struct Transport(reqwest::Client);

    impl HttpConnector for Transport {
        fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
            Ok(HttpClient::new(self.clone()))
        }
    }

    #[async_trait]
    impl HttpService for Transport {
        async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
            let failed = |error| HttpError::new(HttpErrorKind::Unknown, error);
            let asked = request.map(reqwest::Body::wrap).try_into();
            let answer = self.0.execute(asked.map_err(failed)?).await;
            let answer: http::Response<reqwest::Body> = answer.map_err(failed)?.into();
            Ok(answer.map(|content| HttpResponseBody::new(content.map_err(failed))))
        }
    }

    fn client(url: &str) -> AmazonS3 {
        // It would retry a 507 ten times.
        let retry = RetryConfig {
            max_retries: 0,
            ..RetryConfig::default()
        };
        AmazonS3Builder::new()
            .with_endpoint(url)
            .with_allow_http(true)
            .with_region("us-east-1")
            .with_bucket_name("bucket")
            .with_access_key_id("a")
            .with_secret_access_key("b")
            .with_retry(retry)
            .with_http_connector(Transport(reqwest::Client::new()))
            .build()
            .unwrap()
    }

    pub(super) async fn put(url: Arc<str>) -> object_store::Result<()> {
        let put = client(&url);
        put.put(&Key::from("key"), "content".into()).await.map(drop)
    }

    pub(super) async fn upload(url: Arc<str>) -> object_store::Result<()> {
        by_parts(&client(&url)).await
    }
}

/// By a version of `object_store` before 0.14, with its own client.
macro_rules! by_older_object_store {
    ($name:ident, $object_store:ident $(, $Ext:ident)?) => {
        mod $name {
            use std::sync::Arc;

            use ::$object_store::{
                MultipartUpload as _, ObjectStore, $($Ext as _,)? Result, RetryConfig,
                aws::{AmazonS3, AmazonS3Builder},
                local::LocalFileSystem,
                path::Path as Key,
            };

            fn client(url: &str) -> AmazonS3 {
                let retry = RetryConfig {
                    max_retries: 0,
                    ..RetryConfig::default()
                };
                AmazonS3Builder::new()
                    .with_endpoint(url)
                    .with_allow_http(true)
                    .with_region("us-east-1")
                    .with_bucket_name("bucket")
                    .with_access_key_id("a")
                    .with_secret_access_key("b")
                    .with_retry(retry)
                    .build()
                    .unwrap()
            }

            pub(super) async fn put(url: Arc<str>) -> Result<()> {
                put_into(&client(&url), 1).await
            }

            pub(super) async fn upload(url: Arc<str>) -> Result<()> {
                by_parts(&client(&url)).await
            }

            pub(super) async fn put_locally(folder: Arc<str>) -> Result<()> {
                put_into(&LocalFileSystem::new_with_prefix(&*folder)?, 1 << 20).await
            }

            pub(super) async fn upload_locally(folder: Arc<str>) -> Result<()> {
                by_parts(&LocalFileSystem::new_with_prefix(&*folder)?).await
            }

            pub(super) async fn get_locally(folder: Arc<str>) -> Result<()> {
                let store = LocalFileSystem::new_with_prefix(&*folder)?;
                store.get(&Key::from("nothing")).await.map(drop)
            }

            async fn put_into(store: &dyn ObjectStore, bytes: usize) -> Result<()> {
                let content = vec![b'x'; bytes];
                store.put(&Key::from("key"), content.into()).await.map(drop)
            }

            async fn by_parts(store: &dyn ObjectStore) -> Result<()> {
                let mut upload = store.put_multipart(&Key::from("key")).await?;
                upload.put_part(vec![b'x'; 1 << 20].into()).await?;
                upload.complete().await.map(drop)
            }
        }
    };
}
by_older_object_store!(by_object_store012, object_store012);
by_older_object_store!(by_object_store013, object_store013, ObjectStoreExt);

async fn by_parts(store: &dyn ObjectStore) -> object_store::Result<()> {
    let mut upload = store.put_multipart(&Key::from("key")).await?;
    upload.put_part(vec![b'x'; 1 << 20].into()).await?;
    upload.complete().await.map(drop)
}

/// By `opendal`.
mod by_opendal {
    use super::*;

    /// The library is built here without a transport.
    struct Transport(reqwest::Client);

    impl HttpTransport for Transport {
        async fn fetch(
            &self,
            request: http::Request<Buffer>,
        ) -> opendal::Result<http::Response<HttpBody>> {
            let failed = |error: reqwest::Error| {
                opendal::Error::new(opendal::ErrorKind::Unexpected, "send").set_source(error)
            };
            let (parts, content) = request.into_parts();
            let asked = self.0.request(parts.method, parts.uri.to_string());
            let asked = asked.headers(parts.headers).body(content.to_bytes());
            let answer = asked.send().await.map_err(failed)?;
            let (status, headers) = (answer.status(), answer.headers().clone());
            let content = Buffer::from(answer.bytes().await.map_err(failed)?);
            let length = u64::try_from(content.len()).unwrap();
            let content = futures_util::stream::iter([Ok(content)]);
            let mut answer = http::Response::new(HttpBody::new(content, Some(length)));
            *answer.status_mut() = status;
            *answer.headers_mut() = headers;
            answer.extensions_mut().insert(parts.uri);
            Ok(answer)
        }
    }

    fn client(url: &str) -> Operator {
        let s3 = opendal::services::S3::default()
            .endpoint(url)
            .region("us-east-1")
            .bucket("bucket")
            .access_key_id("a")
            .secret_access_key("b")
            .disable_config_load();
        let transport = HttpTransporter::new(Transport(reqwest::Client::new()));
        let context = OperationContext::new().with_http_transport(transport);
        Operator::new(s3).unwrap().with_context(context)
    }

    pub(super) async fn put(url: Arc<str>) -> opendal::Result<()> {
        client(&url).write("key", "content").await.map(drop)
    }

    pub(super) async fn upload(url: Arc<str>) -> opendal::Result<()> {
        let part = 5 << 20;
        let mut writer = client(&url).writer_with("key").chunk(part).await?;
        writer.write(vec![b'x'; part + 1]).await?;
        writer.close().await.map(drop)
    }
}

/// By a version of `opendal` before 0.56, with its own client.
macro_rules! by_older_opendal {
    ($name:ident, $opendal:ident) => {
        mod $name {
            use std::sync::Arc;

            use ::$opendal::{
                Operator, Result,
                services::{Fs, S3},
            };

            fn client(url: &str) -> Operator {
                let s3 = S3::default()
                    .endpoint(url)
                    .region("us-east-1")
                    .bucket("bucket")
                    .access_key_id("a")
                    .secret_access_key("b")
                    .disable_config_load();
                Operator::new(s3).unwrap().finish()
            }

            fn local(folder: &str) -> Operator {
                Operator::new(Fs::default().root(folder)).unwrap().finish()
            }

            pub(super) async fn put(url: Arc<str>) -> Result<()> {
                client(&url).write("key", "content").await.map(drop)
            }

            pub(super) async fn upload(url: Arc<str>) -> Result<()> {
                let part = 5 << 20;
                let mut writer = client(&url).writer_with("key").chunk(part).await?;
                writer.write(vec![b'x'; part + 1]).await?;
                writer.close().await.map(drop)
            }

            pub(super) async fn put_locally(folder: Arc<str>) -> Result<()> {
                let content = vec![b'x'; 1 << 20];
                local(&folder).write("key", content).await.map(drop)
            }

            pub(super) async fn get_locally(folder: Arc<str>) -> Result<()> {
                local(&folder).read("nothing").await.map(drop)
            }
        }
    };
}
by_older_opendal!(by_opendal054, opendal054);
by_older_opendal!(by_opendal055, opendal055);

/// By `aws-sdk-s3`.
pub(crate) mod by_aws_sdk {
    use aws_sdk_s3::{Client, Config, error::SdkError, operation::put_object::PutObjectError};

    use super::*;

    pub(crate) fn client(url: &str) -> Client {
        let config = Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .endpoint_url(url)
            .force_path_style(true)
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("a", "b", None, None, "test"))
            .retry_config(retry::RetryConfig::disabled());
        Client::from_conf(config.build())
    }

    pub(super) async fn put(url: Arc<str>) -> Result<(), SdkError<PutObjectError>> {
        let put = client(&url).put_object().bucket("bucket").key("key");
        put.body(ByteStream::from_static(b"content"))
            .send()
            .await
            .map(drop)
    }

    pub(super) async fn upload(url: Arc<str>) -> Result<(), aws_sdk_s3::Error> {
        let client = client(&url);
        let create = client.create_multipart_upload().bucket("bucket").key("key");
        let id = create.send().await?.upload_id.unwrap();
        let part = client.upload_part().bucket("bucket").key("key");
        let part = part.upload_id(&id).part_number(1);
        let part = part
            .body(ByteStream::from_static(b"content"))
            .send()
            .await?;
        let part = CompletedPart::builder()
            .part_number(1)
            .set_e_tag(part.e_tag)
            .build();
        let parts = CompletedMultipartUpload::builder().parts(part).build();
        let complete = client
            .complete_multipart_upload()
            .bucket("bucket")
            .key("key");
        let complete = complete.upload_id(id).multipart_upload(parts);
        complete.send().await?;
        Ok(())
    }
}

/// Asserts the classification of an answer to every operation. Without a cause, that it is not a refusal.
async fn becomes(answer: Answer, cause: Option<Cause>) {
    let store = Store::start(Operation::Put, answer).await;
    assert_becomes(cause, store.work(by_object_store::put)).await;
    assert_becomes(cause, store.work(by_object_store012::put)).await;
    assert_becomes(cause, store.work(by_object_store013::put)).await;
    assert_becomes(cause, store.work(by_opendal::put)).await;
    assert_becomes(cause, store.work(by_opendal054::put)).await;
    assert_becomes(cause, store.work(by_opendal055::put)).await;
    assert_becomes(cause, store.work(by_aws_sdk::put)).await;
    for operation in [Operation::Create, Operation::Part, Operation::Complete] {
        let store = Store::start(operation, answer).await;
        assert_becomes(cause, store.work(by_object_store::upload)).await;
        assert_becomes(cause, store.work(by_object_store012::upload)).await;
        assert_becomes(cause, store.work(by_object_store013::upload)).await;
        assert_becomes(cause, store.work(by_opendal::upload)).await;
        assert_becomes(cause, store.work(by_opendal054::upload)).await;
        assert_becomes(cause, store.work(by_opendal055::upload)).await;
        assert_becomes(cause, store.work(by_aws_sdk::upload)).await;
    }
}

#[tokio::test]
async fn a_full_minio() {
    becomes(MINIO_FULL, Some(Cause::DiskFull)).await;
}

#[tokio::test]
async fn a_quota_of_minio() {
    becomes(MINIO_QUOTA, Some(Cause::QuotaExceeded)).await;
}

#[tokio::test]
async fn a_quota_of_ceph() {
    becomes(CEPH_QUOTA, Some(Cause::QuotaExceeded)).await;
}

#[tokio::test]
async fn other_refusals_of_a_store_are_no_fault() {
    for (status, code) in [
        (503, "SlowDown"),
        (400, "EntityTooLarge"),
        (403, "AccessDenied"),
        (404, "NoSuchBucket"),
    ] {
        becomes(Answer { status, code }, None).await;
    }
}

/// Like a gateway in front of the store. The AWS SDK does not expose the status.
#[tokio::test]
async fn a_507_without_content() {
    let answer = Answer {
        status: 507,
        code: "",
    };
    let store = Store::start(Operation::Put, answer).await;
    assert_refused(Cause::DiskFull, store.work(by_object_store::put)).await;
    assert_refused(Cause::DiskFull, store.work(by_object_store012::put)).await;
    assert_refused(Cause::DiskFull, store.work(by_object_store013::put)).await;
    assert_refused(Cause::DiskFull, store.work(by_opendal::put)).await;
    assert_refused(Cause::DiskFull, store.work(by_opendal054::put)).await;
    assert_refused(Cause::DiskFull, store.work(by_opendal055::put)).await;
    assert_not_refused(store.work(by_aws_sdk::put)).await;
}

/// A store may have begun its answer before it knows how an upload ends. `object_store` then drops the error.
#[tokio::test]
async fn an_error_in_an_answer_of_success() {
    let answer = Answer {
        status: 200,
        ..MINIO_FULL
    };
    let store = Store::start(Operation::Complete, answer).await;
    assert_refused(Cause::DiskFull, store.work(by_opendal::upload)).await;
    assert_refused(Cause::DiskFull, store.work(by_opendal054::upload)).await;
    assert_refused(Cause::DiskFull, store.work(by_opendal055::upload)).await;
    assert_refused(Cause::DiskFull, store.work(by_aws_sdk::upload)).await;
    assert_not_refused(store.work(by_object_store::upload)).await;
}

#[test]
#[cfg(target_os = "linux")]
#[ignore = "mounts filesystems"]
fn a_full_local_filesystem() {
    use futures_util::AsyncWriteExt as _;
    use object_store::{buffered::BufWriter, local::LocalFileSystem};
    use tokio::io::AsyncWriteExt as _;

    use test_support::mounts::{fill_but, in_runtime, tmpfs, with_own_mounts};

    with_own_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let disk = tmpfs(folder.path(), "size=2m");
            fill_but(&disk, 64 << 10);
            let content = || vec![b'x'; 1 << 20];
            let cause = Cause::DiskFull;

            let store = Arc::new(LocalFileSystem::new_with_prefix(&disk).unwrap());
            let key = Key::from("key");
            let (used, at) = (store.clone(), key.clone());
            let put = move || {
                let (store, key) = (used.clone(), at.clone());
                async move { store.put(&key, content().into()).await }
            };
            assert_refused(cause, put).await;
            let used = store.clone();
            let upload = move || {
                let store = used.clone();
                async move { by_parts(&*store).await }
            };
            assert_refused(cause, upload).await;
            let (used, at) = (store.clone(), key.clone());
            let write = move || {
                let mut writer = BufWriter::new(used.clone(), at.clone());
                async move {
                    writer.write_all(&content()).await?;
                    writer.shutdown().await
                }
            };
            assert_refused(cause, write).await;
            let missing = move || {
                let (store, key) = (store.clone(), key.clone());
                async move { store.get(&key).await }
            };
            assert_not_refused(missing).await;

            let fs = opendal::services::Fs::default().root(disk.to_str().unwrap());
            let operator = Operator::new(fs).unwrap();
            let used = operator.clone();
            let write = move || {
                let operator = used.clone();
                async move { operator.write("key", content()).await }
            };
            assert_refused(cause, write).await;
            let used = operator.clone();
            let stream = move || {
                let operator = used.clone();
                async move {
                    let mut writer = operator.writer("key").await?.into_futures_async_write();
                    writer.write_all(&content()).await?;
                    writer.close().await
                }
            };
            assert_refused(cause, stream).await;
            let missing = move || {
                let operator = operator.clone();
                async move { operator.read("nothing").await }
            };
            assert_not_refused(missing).await;
        });
    });
}

#[test]
#[cfg(target_os = "linux")]
#[ignore = "mounts filesystems"]
fn a_full_local_filesystem_by_older_versions() {
    use test_support::mounts::{fill_but, in_runtime, tmpfs, with_own_mounts};

    with_own_mounts(|| {
        in_runtime(async {
            let folder = tempfile::tempdir().unwrap();
            let disk = tmpfs(folder.path(), "size=2m");
            fill_but(&disk, 64 << 10);
            let disk: Arc<str> = disk.to_str().unwrap().into();
            let full = Cause::DiskFull;
            assert_refused(full, with(&disk, by_object_store012::put_locally)).await;
            assert_refused(full, with(&disk, by_object_store012::upload_locally)).await;
            assert_not_refused(with(&disk, by_object_store012::get_locally)).await;
            assert_refused(full, with(&disk, by_object_store013::put_locally)).await;
            assert_refused(full, with(&disk, by_object_store013::upload_locally)).await;
            assert_not_refused(with(&disk, by_object_store013::get_locally)).await;
            assert_refused(full, with(&disk, by_opendal054::put_locally)).await;
            assert_not_refused(with(&disk, by_opendal054::get_locally)).await;
            assert_refused(full, with(&disk, by_opendal055::put_locally)).await;
            assert_not_refused(with(&disk, by_opendal055::get_locally)).await;
        });
    });
}
