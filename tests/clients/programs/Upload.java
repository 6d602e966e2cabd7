import java.io.InputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;

/**
 * Uploads zeros with Java's own HTTP client, then asks again on the same connection.
 *
 * java Upload.java HTTP_1_1|HTTP_2 length|chunked expect|send SIZE URL
 */
class Upload {
    public static void main(String[] args) throws Exception {
        var version = HttpClient.Version.valueOf(args[0]);
        var size = Long.parseLong(args[3]);
        var client = HttpClient.newBuilder().version(version).build();
        var upload = HttpRequest.newBuilder(URI.create(args[4] + "/a"))
                .PUT(zeros(size, args[1].equals("length")))
                .expectContinue(args[2].equals("expect"))
                .build();
        show(client.send(upload, BodyHandlers.ofString()));
        var again = HttpRequest.newBuilder(URI.create(args[4] + "/")).build();
        show(client.send(again, BodyHandlers.ofString()));
        System.exit(0);
    }

    static void show(HttpResponse<String> answer) {
        System.out.println(answer.statusCode() + " " + answer.body());
    }

    static BodyPublisher zeros(long size, boolean isKnown) {
        var unknown = BodyPublishers.ofInputStream(() -> new Zeros(size));
        return isKnown ? BodyPublishers.fromPublisher(unknown, size) : unknown;
    }

    static class Zeros extends InputStream {
        private long left;

        Zeros(long size) {
            left = size;
        }

        @Override
        public int read() {
            return left-- > 0 ? 0 : -1;
        }

        @Override
        public int read(byte[] bytes, int from, int most) {
            if (left <= 0) {
                return -1;
            }
            // What was in the buffer before is as good as zeros.
            int read = (int) Math.min(most, left);
            left -= read;
            return read;
        }
    }
}
