package app;

import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.boot.web.client.RestTemplateBuilder;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.RequestParam;
import org.springframework.web.bind.annotation.RestController;
import org.springframework.web.client.RestTemplate;

/** Spring Boot with Micrometer Tracing and Brave. Variants: builder (right); new, pool (wrong). */
@SpringBootApplication
@RestController
public class App {
    private final RestTemplate client;
    private final ExecutorService pool = Executors.newFixedThreadPool(8);
    private final String variant;
    private final String next;

    App(RestTemplateBuilder builder, @Value("${VARIANT}") String variant, @Value("${NEXT}") String next) {
        this.client = variant.equals("new") ? new RestTemplate() : builder.build();
        this.variant = variant;
        this.next = next;
    }

    @GetMapping("/orders")
    String orders(@RequestParam String id) throws Exception {
        if (variant.equals("pool")) {
            return pool.submit(() -> call(id)).get();
        }
        return call(id);
    }

    private String call(String id) {
        return client.getForObject(next + "/stock?id=" + id, String.class);
    }

    public static void main(String[] args) {
        SpringApplication.run(App.class, args);
    }
}
