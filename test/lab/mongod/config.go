package main

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// config is the part of the configuration that matters here.
type config struct {
	bindIP        []string
	port          int
	dbPath        string
	logPath       string
	authorization bool
}

// yamlFile knows the settings people really have: as with the real server an unknown one is refused.
type yamlFile struct {
	SystemLog struct {
		Destination     string `yaml:"destination"`
		Path            string `yaml:"path"`
		LogAppend       bool   `yaml:"logAppend"`
		LogRotate       string `yaml:"logRotate"`
		Verbosity       int    `yaml:"verbosity"`
		Quiet           bool   `yaml:"quiet"`
		TimeStampFormat string `yaml:"timeStampFormat"`
	} `yaml:"systemLog"`
	Storage struct {
		DBPath  string `yaml:"dbPath"`
		Engine  string `yaml:"engine"`
		Journal struct {
			Enabled bool `yaml:"enabled"`
		} `yaml:"journal"`
		DirectoryPerDB bool      `yaml:"directoryPerDB"`
		WiredTiger     yaml.Node `yaml:"wiredTiger"`
	} `yaml:"storage"`
	Net struct {
		Port                   int       `yaml:"port"`
		BindIP                 string    `yaml:"bindIp"`
		BindIPAll              bool      `yaml:"bindIpAll"`
		IPv6                   bool      `yaml:"ipv6"`
		MaxIncomingConnections int       `yaml:"maxIncomingConnections"`
		UnixDomainSocket       yaml.Node `yaml:"unixDomainSocket"`
		TLS                    yaml.Node `yaml:"tls"`
	} `yaml:"net"`
	Security struct {
		Authorization string `yaml:"authorization"`
		KeyFile       string `yaml:"keyFile"`
	} `yaml:"security"`
	ProcessManagement  yaml.Node `yaml:"processManagement"`
	OperationProfiling yaml.Node `yaml:"operationProfiling"`
	Replication        yaml.Node `yaml:"replication"`
	Sharding           yaml.Node `yaml:"sharding"`
	SetParameter       yaml.Node `yaml:"setParameter"`
}

// An ini file has key = value lines and no colon after a first word.
var iniLine = regexp.MustCompile(`^\s*\w+\s*=`)

func readConfig(name string) (config, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return config{}, err
	}
	c := config{port: 27017, bindIP: []string{"127.0.0.1"}, dbPath: "/data/db"}
	read := readYAML
	for line := range bytes.Lines(b) {
		if iniLine.Match(line) {
			read = readINI
			break
		}
	}
	if err := read(b, &c); err != nil {
		return config{}, fmt.Errorf("error parsing %s: %w", name, err)
	}
	if c.port < 1 || c.port > 65535 {
		return config{}, fmt.Errorf("error parsing %s: port %d", name, c.port)
	}
	return c, nil
}

func readYAML(b []byte, c *config) error {
	var f yamlFile
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(&f); err != nil && len(bytes.TrimSpace(b)) > 0 {
		return err
	}
	if f.Net.Port != 0 {
		c.port = f.Net.Port
	}
	if f.Net.BindIPAll {
		c.bindIP = []string{"0.0.0.0"}
	} else if f.Net.BindIP != "" {
		c.bindIP = addresses(f.Net.BindIP)
	}
	if f.Storage.DBPath != "" {
		c.dbPath = f.Storage.DBPath
	}
	if f.SystemLog.Destination == "file" {
		c.logPath = f.SystemLog.Path
	}
	switch f.Security.Authorization {
	case "enabled":
		c.authorization = true
	case "", "disabled":
	default:
		return fmt.Errorf("security.authorization: %q", f.Security.Authorization)
	}
	return nil
}

func readINI(b []byte, c *config) error {
	ignored := []string{"logappend", "journal", "nojournal", "noauth", "verbose", "smallfiles", "fork", "quiet",
		"nohttpinterface", "pidfilepath", "cpu", "diaglog", "setParameter"}
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		line, _, _ = strings.Cut(strings.TrimSpace(line), "#")
		if line == "" {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if !ok {
			return fmt.Errorf("line %d: %q", n, line)
		}
		var err error
		switch key {
		case "bind_ip":
			c.bindIP = addresses(value)
		case "port":
			c.port, err = strconv.Atoi(value)
		case "dbpath":
			c.dbPath = value
		case "logpath":
			c.logPath = value
		case "auth":
			c.authorization, err = strconv.ParseBool(value)
		default:
			if !slices.Contains(ignored, key) {
				err = fmt.Errorf("unrecognised option %q", key)
			}
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	return nil
}

func addresses(list string) []string {
	var all []string
	for ip := range strings.SplitSeq(list, ",") {
		all = append(all, strings.TrimSpace(ip))
	}
	return all
}
