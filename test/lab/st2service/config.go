package main

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
)

// config is what all services take from st2.conf.
type config struct {
	host, port, dbName, username, password string // [database]
	brokers                                []string
	// whether this node has any: st2reactor/st2reactor/cmd/timersengine.py:71
	timers  bool
	sensors partition
}

// files are what --config-file names, once or more often: what a later one sets counts (oslo_config/cfg.py).
type files []string

func (f *files) String() string { return strings.Join(*f, " ") }

func (f *files) Set(name string) error {
	*f = append(*f, name)
	return nil
}

// readConfig reads oslo.config files as far as it matters here. A $ is taken as it stands: the real services
// interpolate it, so the lab's passwords have none.
func readConfig(names ...string) (config, error) {
	c := config{host: "127.0.0.1", port: "27017", dbName: "st2"}
	url, cluster := "amqp://guest:guest@127.0.0.1:5672//", "" // the real default
	timer, timersengine := "False", "True"                    // the first has no default
	provider := "name:default"
	settings := map[string]*string{
		"database/host": &c.host, "database/port": &c.port, "database/db_name": &c.dbName,
		"database/username": &c.username, "database/password": &c.password,
		"messaging/url": &url, "messaging/cluster_urls": &cluster,
		"timer/enable": &timer, "timersengine/enable": &timersengine, "sensorcontainer/partition_provider": &provider,
	}
	for _, name := range names {
		if err := readFile(name, settings); err != nil {
			return config{}, err
		}
	}
	var err error
	if c.sensors, err = parsePartition(provider); err != nil {
		return config{}, err
	}
	for _, text := range []string{timer, timersengine} {
		switch strings.ToLower(text) { // oslo_config/types.py, Boolean
		case "true", "1", "on", "yes":
			c.timers = true
		case "false", "0", "off", "no":
		default:
			return config{}, fmt.Errorf("unexpected boolean value %q", text)
		}
	}
	c.brokers = []string{url}
	if cluster != "" { // replaces url
		c.brokers = strings.Split(cluster, ",")
		for i := range c.brokers {
			c.brokers[i] = strings.TrimSpace(c.brokers[i])
		}
	}
	return c, nil
}

func readFile(name string, settings map[string]*string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	section, n := "", 0
	for line := range strings.Lines(string(b)) {
		n++
		line = strings.TrimRight(line, " \t\r\n")
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
		case line[0] == '[':
			if !strings.HasSuffix(line, "]") {
				return fmt.Errorf("%s:%d: no ] at the end of %q", name, n, line)
			}
			section = line[1 : len(line)-1]
		case line[0] == ' ' || line[0] == '\t': // goes on from the line above: none of ours does
		default:
			i := strings.IndexAny(line, "=:")
			if i < 0 || section == "" {
				return fmt.Errorf("%s:%d: not a setting: %q", name, n, line)
			}
			key, value := strings.TrimSpace(line[:i]), strings.TrimSpace(line[i+1:])
			if len(value) > 1 && (value[0] == '"' || value[0] == '\'') && value[len(value)-1] == value[0] {
				value = value[1 : len(value)-1]
			}
			if p := settings[section+"/"+key]; p != nil {
				*p = value
			}
		}
	}
	return nil
}

// databaseURI is [database] as one URI; host may be one already.
func (c config) databaseURI() string {
	if strings.Contains(c.host, "://") {
		return c.host
	}
	u := url.URL{Scheme: "mongodb", Host: net.JoinHostPort(c.host, c.port), Path: "/" + c.dbName}
	if c.username != "" {
		u.User = url.UserPassword(c.username, c.password)
	}
	return u.String()
}
