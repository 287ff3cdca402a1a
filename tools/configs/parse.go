package main

import (
	"cmp"
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
)

// pkg is a package with configurations.
type pkg struct {
	name      string // as it is imported, without the module's path
	configs   []config
	constants map[string]string // the values of its constants, as they are written
}

// config is a struct that a caller fills.
type config struct {
	name     string
	synopsis string
	doc      string
	fields   []field
}

type field struct {
	name, typ, doc string
}

// skipped are the directories without a public package.
var skipped = []string{"internal", "examples", "benchmarks", "tools", "tests", "soak", "testdata", "docs"}

// parse returns the public packages below root that have configurations, the root package first.
func parse(root string) ([]pkg, error) {
	var all []pkg
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		if path != root && (strings.HasPrefix(entry.Name(), ".") || slices.Contains(skipped, entry.Name())) {
			return filepath.SkipDir
		}
		p, err := parsePackage(path)
		if err != nil || len(p.configs) == 0 {
			return err
		}
		if path != root {
			name, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			p.name = filepath.ToSlash(name)
		}
		all = append(all, p)
		return nil
	})
	return all, err
}

// parsePackage returns the package in a directory. One of a command has no configurations.
func parsePackage(dir string) (pkg, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return pkg{}, err
	}
	fset := token.NewFileSet()
	var parsed []*ast.File
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(fset, name, nil, parser.ParseComments)
		if err != nil {
			return pkg{}, err
		}
		parsed = append(parsed, file)
	}
	if len(parsed) == 0 || parsed[0].Name.Name == "main" {
		return pkg{}, nil
	}
	d, err := doc.NewFromFiles(fset, parsed, dir)
	if err != nil {
		return pkg{}, err
	}
	return pkg{name: d.Name, configs: configsOf(d), constants: constantsOf(parsed)}, nil
}

// configsOf returns the structs named ...Config and ...Options, and those that their fields have.
func configsOf(d *doc.Package) []config {
	structs := map[string]*ast.StructType{}
	var wanted []string
	for _, t := range d.Types {
		if s, ok := t.Decl.Specs[0].(*ast.TypeSpec).Type.(*ast.StructType); ok && ast.IsExported(t.Name) {
			structs[t.Name] = s
			if strings.HasSuffix(t.Name, "Config") || strings.HasSuffix(t.Name, "Options") {
				wanted = append(wanted, t.Name)
			}
		}
	}
	for i := 0; i < len(wanted); i++ {
		for _, f := range fieldsOf(structs[wanted[i]]) {
			name := strings.TrimPrefix(f.typ, "*")
			if structs[name] != nil && !slices.Contains(wanted, name) {
				wanted = append(wanted, name)
			}
		}
	}
	var configs []config
	for _, t := range d.Types {
		if slices.Contains(wanted, t.Name) {
			configs = append(configs, config{t.Name, d.Synopsis(t.Doc), t.Doc, fieldsOf(structs[t.Name])})
		}
	}
	slices.SortFunc(configs, func(a, b config) int { return cmp.Compare(a.name, b.name) })
	return configs
}

// fieldsOf returns the exported fields of a struct.
func fieldsOf(s *ast.StructType) []field {
	var fields []field
	for i, f := range s.Fields.List {
		if i > 0 && f.Doc == nil && f.Comment == nil {
			f.Doc = s.Fields.List[i-1].Doc // one comment for both
		}
		text := cmp.Or(strings.TrimSpace(f.Doc.Text()), strings.TrimSpace(f.Comment.Text()))
		for _, name := range f.Names {
			if name.IsExported() {
				fields = append(fields, field{name.Name, types.ExprString(f.Type), strings.Join(strings.Fields(text), " ")})
			}
		}
	}
	return fields
}

// constantsOf returns the constants of a package as they are written.
func constantsOf(files []*ast.File) map[string]string {
	values := map[string]string{}
	for _, file := range files {
		for _, decl := range file.Decls {
			if group, ok := decl.(*ast.GenDecl); ok && group.Tok == token.CONST {
				for _, spec := range group.Specs {
					spec := spec.(*ast.ValueSpec)
					for i, value := range spec.Values {
						values[spec.Names[i].Name] = types.ExprString(value)
					}
				}
			}
		}
	}
	return values
}
