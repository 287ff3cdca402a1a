// Package browsertest starts the browser in which the pages of the examples are tested.
package browsertest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// chromium finds the browser: CHROMIUM, or one in PATH. Without one the test is skipped, or fails
// with REQUIRE_CHROMIUM=1, which make test sets.
func chromium(t *testing.T) string {
	t.Helper()
	names := []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome",
		"/Applications/Google Chrome.app/Contents/MacOS/Google Chrome", "/Applications/Chromium.app/Contents/MacOS/Chromium"}
	if name := os.Getenv("CHROMIUM"); name != "" {
		names = []string{name}
	}
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	const how = "no Chromium found: install the package chromium, set CHROMIUM to the path of a browser, or run scripts/chromium.sh, which does it for you"
	if os.Getenv("REQUIRE_CHROMIUM") == "1" || os.Getenv("CHROMIUM") != "" {
		t.Fatal(how)
	}
	t.Skip(how)
	return ""
}

// Start runs a browser without a window, which ends with the test.
func Start(t *testing.T) context.Context {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(chromium(t)),
		chromedp.UserDataDir(filepath.Join(t.TempDir(), "profile")),
		chromedp.Flag("headless", "new"),
		chromedp.Flag("disable-gpu", true),
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("lang", "en-GB"),
		chromedp.Env("LANG=en_GB.UTF-8", "LANGUAGE=en_GB"),
		chromedp.WSURLReadTimeout(time.Minute), // the first start on a busy machine
	)
	if os.Getuid() == 0 {
		options = append(options, chromedp.NoSandbox)
	}
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(stop)
	browser, _ := chromedp.NewContext(allocator)
	if err := chromedp.Run(browser); err != nil {
		t.Fatalf("the browser does not start: %v", err)
	}
	t.Cleanup(func() {
		_ = chromedp.Cancel(browser) // waits for the process
		chromedp.FromContext(browser).Allocator.Wait()
	})
	return browser
}
