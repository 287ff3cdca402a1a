package promchannels_test

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/flaminco/redischannels"
	"github.com/flaminco/redischannels/promchannels"
)

// exportedNames returns the names of all metrics, with those of the series of histograms, and their labels.
func exportedNames(t *testing.T) map[string][]string {
	t.Helper()
	metrics := newMetrics(t, promchannels.Config{})
	descriptions := make(chan *prometheus.Desc, 100)
	metrics.Describe(descriptions)
	(*promchannels.Collector)(nil).Describe(descriptions)
	close(descriptions)
	names := map[string][]string{}
	parts := regexp.MustCompile(`fqName: "(\w+)".*variableLabels: \{([^}]*)\}`)
	for d := range descriptions {
		found := parts.FindStringSubmatch(d.String())
		require.NotNil(t, found, d.String())
		labels := strings.Split(found[2], ",")
		names[found[1]] = labels
		if strings.HasSuffix(found[1], "_duration_seconds") {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				names[found[1]+suffix] = append([]string{"le"}, labels...)
			}
		}
	}
	return names
}

var (
	metricOf = regexp.MustCompile(`\b(redischannels_\w+)(?:\{([^}]*)\})?`)
	labelOf  = regexp.MustCompile(`(\w+)=~?"([^"]*)"`)
)

// checkExpression compares the names of metrics, of labels, and of the values of outcome and kind.
func checkExpression(t *testing.T, names map[string][]string, expression string) (metrics []string) {
	t.Helper()
	for _, found := range metricOf.FindAllStringSubmatch(expression, -1) {
		require.Contains(t, names, found[1], expression)
		metrics = append(metrics, found[1])
		for _, label := range labelOf.FindAllStringSubmatch(found[2], -1) {
			require.Contains(t, names[found[1]], label[1], expression)
			for _, value := range strings.Split(label[2], "|") {
				switch {
				case label[1] == "kind":
					require.NoError(t, new(redischannels.EventKind).UnmarshalText([]byte(value)))
				case label[1] == "outcome" && strings.HasPrefix(found[1], "redischannels_published"):
					require.NoError(t, new(redischannels.Outcome).UnmarshalText([]byte(value)))
				case label[1] == "outcome":
					require.NoError(t, new(redischannels.ProcessOutcome).UnmarshalText([]byte(value)))
				}
			}
		}
	}
	require.NotEmpty(t, metrics, expression)
	require.Equal(t, strings.Count(expression, "("), strings.Count(expression, ")"), expression)
	return metrics
}

// A metric that was renamed leaves a panel without data, and an alert that never fires.
func TestContrib_Alerts(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("contrib/alerts.yml")
	require.NoError(t, err)
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	require.NoError(t, yaml.Unmarshal(text, &file))
	require.Len(t, file.Groups, 1)
	require.Greater(t, len(file.Groups[0].Rules), 5)
	names := exportedNames(t)
	for _, rule := range file.Groups[0].Rules {
		require.True(t, strings.HasPrefix(rule.Alert, "RedisChannels"))
		require.NotEmpty(t, rule.Labels["severity"], rule.Alert)
		require.NotEmpty(t, rule.Annotations["summary"], rule.Alert)
		checkExpression(t, names, rule.Expr)
	}
}

// The dashboard shows every metric.
func TestContrib_Dashboard(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("contrib/dashboard.json")
	require.NoError(t, err)
	var dashboard struct {
		Templating struct {
			List []struct {
				Name  string
				Query any
			}
		}
		Panels []struct {
			Title   string
			Targets []struct{ Expr, LegendFormat string }
		}
	}
	require.NoError(t, json.Unmarshal(text, &dashboard))
	names := exportedNames(t)
	shown := map[string]bool{}
	for _, panel := range dashboard.Panels {
		require.NotEmpty(t, panel.Targets, panel.Title)
		for _, target := range panel.Targets {
			for _, name := range checkExpression(t, names, strings.ReplaceAll(target.Expr, "$", "")) {
				shown[strings.TrimSuffix(name, "_bucket")] = true
			}
		}
	}
	for _, variable := range dashboard.Templating.List[1:] {
		for _, name := range checkExpression(t, names, fmt.Sprint(variable.Query)) {
			shown[name] = true
		}
	}
	for name := range names {
		if !strings.HasSuffix(name, "_bucket") && !strings.HasSuffix(name, "_sum") && !strings.HasSuffix(name, "_count") {
			require.True(t, shown[name], "no panel shows %s", name)
		}
	}
}

// The page on telemetry lists every metric.
func TestContrib_Documentation(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/telemetry.md")
	require.NoError(t, err)
	names := exportedNames(t)
	for name := range names {
		if !strings.HasSuffix(name, "_bucket") && !strings.HasSuffix(name, "_sum") && !strings.HasSuffix(name, "_count") {
			require.Contains(t, string(text), "`"+name+"`")
		}
	}
	for _, name := range metricOf.FindAllStringSubmatch(string(text), -1) {
		require.Contains(t, names, name[1])
	}
}
