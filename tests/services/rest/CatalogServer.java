package org.apache.iceberg.rest;

import jakarta.servlet.DispatcherType;
import jakarta.servlet.FilterChain;
import jakarta.servlet.ServletException;
import jakarta.servlet.http.HttpFilter;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.io.Reader;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Base64;
import java.util.EnumSet;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.UUID;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.hadoop.conf.Configuration;
import org.apache.iceberg.CatalogUtil;
import org.apache.iceberg.catalog.Catalog;
import org.apache.iceberg.rest.responses.LoadTableResponse;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.servlet.FilterHolder;
import org.eclipse.jetty.servlet.ServletContextHandler;
import org.eclipse.jetty.servlet.ServletHolder;

/**
 * Iceberg's own REST test fixture, plus what it lacks and real catalogs have: it listens on
 * loopback only, refuses requests without a token it issued, and hands the storage settings to
 * the client with each table.
 *
 * <p>The one argument is a properties file: {@code port}, optional {@code credential} (id:secret)
 * and {@code token-seconds}; every other property goes to the backing catalog. The class lives in
 * the fixture's package because the adapter's route type is package-private.
 */
public class CatalogServer {
  private static final List<String> VENDED =
      List.of(
          "s3.endpoint", "s3.path-style-access", "s3.access-key-id", "s3.secret-access-key",
          "client.region");

  public static void main(String[] args) throws Exception {
    Properties file = new Properties();
    try (Reader reader = Files.newBufferedReader(Path.of(args[0]))) {
      file.load(reader);
    }
    Map<String, String> settings = new HashMap<>();
    file.stringPropertyNames().forEach(name -> settings.put(name, file.getProperty(name)));
    int port = Integer.parseInt(settings.remove("port"));
    String credential = settings.remove("credential");
    String tokenSeconds = settings.remove("token-seconds");

    Catalog catalog = CatalogUtil.buildIcebergCatalog("rest", settings, new Configuration());
    ServletContextHandler context = new ServletContextHandler();
    context.addServlet(
        new ServletHolder(new RESTCatalogServlet(new VendingAdapter(catalog, settings))), "/*");
    if (credential != null) {
      int seconds = tokenSeconds == null ? 3600 : Integer.parseInt(tokenSeconds);
      context.addFilter(
          new FilterHolder(new TokenFilter(credential, seconds)),
          "/*",
          EnumSet.of(DispatcherType.REQUEST));
    }
    Server server = new Server(new InetSocketAddress("127.0.0.1", port));
    server.setHandler(context);
    server.start();
    server.join();
  }

  private static class VendingAdapter extends RESTCatalogAdapter {
    private final Map<String, String> vended = new HashMap<>();

    VendingAdapter(Catalog catalog, Map<String, String> settings) {
      super(catalog);
      vended.putAll(settings);
      vended.keySet().retainAll(VENDED);
    }

    @Override
    public <T extends RESTResponse> T handleRequest(
        Route route, Map<String, String> vars, Object body, Class<T> responseType) {
      T response = super.handleRequest(route, vars, body, responseType);
      if (response instanceof LoadTableResponse) {
        ((LoadTableResponse) response).config().putAll(vended);
      }
      return response;
    }
  }

  private static class TokenFilter extends HttpFilter {
    private final String credential;
    private final int seconds;
    private final Map<String, Long> expiryByToken = new ConcurrentHashMap<>();

    TokenFilter(String credential, int seconds) {
      this.credential = credential;
      this.seconds = seconds;
    }

    @Override
    protected void doFilter(
        HttpServletRequest request, HttpServletResponse response, FilterChain chain)
        throws IOException, ServletException {
      String header = request.getHeader("Authorization");
      if (request.getRequestURI().equals("/v1/oauth/tokens")) {
        issue(request, response, header);
      } else if (header == null || !header.startsWith("Bearer ")) {
        refuse(response, "no bearer token");
      } else if (expiryByToken.getOrDefault(header.substring(7), 0L) < System.currentTimeMillis()) {
        refuse(response, "token unknown or expired");
      } else {
        chain.doFilter(request, response);
      }
    }

    private void issue(HttpServletRequest request, HttpServletResponse response, String header)
        throws IOException {
      String given = request.getParameter("client_id") + ":" + request.getParameter("client_secret");
      if (header != null && header.startsWith("Basic ")) {
        given = new String(Base64.getDecoder().decode(header.substring(6)), StandardCharsets.UTF_8);
      }
      if (!"client_credentials".equals(request.getParameter("grant_type"))) {
        reply(response, 400, "{\"error\":\"unsupported_grant_type\"}");
      } else if (!credential.equals(given)) {
        reply(response, 401, "{\"error\":\"invalid_client\"}");
      } else {
        String token = UUID.randomUUID().toString();
        expiryByToken.put(token, System.currentTimeMillis() + seconds * 1000L);
        reply(
            response,
            200,
            String.format(
                "{\"access_token\":\"%s\",\"token_type\":\"bearer\",\"expires_in\":%d,"
                    + "\"issued_token_type\":\"urn:ietf:params:oauth:token-type:access_token\"}",
                token, seconds));
      }
    }

    private static void refuse(HttpServletResponse response, String message) throws IOException {
      reply(
          response,
          401,
          "{\"error\":{\"message\":\"" + message
              + "\",\"type\":\"NotAuthorizedException\",\"code\":401}}");
    }

    private static void reply(HttpServletResponse response, int status, String body)
        throws IOException {
      response.setStatus(status);
      response.setContentType("application/json");
      response.getWriter().write(body);
    }
  }
}
